"""instructor: `pip install instructor`."""

# ANCHOR: structured
import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


# Without `extra`, a small model goes on with fields of its own.
class City(BaseModel, extra="forbid"):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99_999_999)
    coast: bool


client = instructor.from_openai(
    OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"),
    mode=instructor.Mode.JSON_SCHEMA,
)
city = client.create(
    model="SmolLM2-135M-Instruct",
    response_model=City,
    messages=[{"role": "user", "content": "Invent a city."}],
    max_tokens=100,
    temperature=0,
    max_retries=0,
)
print(city)
# ANCHOR_END: structured

assert isinstance(city, City), city

asked = {
    "model": "SmolLM2-135M-Instruct",
    "response_model": City,
    "messages": [{"role": "user", "content": "Invent a city."}],
    "max_tokens": 100,
    "temperature": 0,
    "max_retries": 0,
}
raw = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
# The model is made to call a function, whose arguments are the answer.
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
    city = instructor.from_openai(raw, mode=mode).create(**asked)
    assert isinstance(city, City), (mode, city)

# ANCHOR: stream
for part in client.create_partial(
    model="SmolLM2-135M-Instruct",
    response_model=City,
    messages=[{"role": "user", "content": "Invent a city."}],
    max_tokens=100,
    temperature=0,
):
    print(part)
# ANCHOR_END: stream

assert part.name is not None and part.coast is not None, part

try:
    client.create(**{**asked, "model": "gpt-4"})
except Exception as error:
    assert "model_not_found" in str(error), error
else:
    raise AssertionError("a model that is not served is refused")
print("ok")
