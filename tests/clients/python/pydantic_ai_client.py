"""Pydantic AI: `pip install "pydantic-ai-slim[openai]"`."""

# ANCHOR: chat
import asyncio

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(
    "SmolLM2-135M-Instruct",
    provider=OpenAIProvider(base_url="http://127.0.0.1:8000/v1", api_key="none"),
)
settings = {"temperature": 0, "max_tokens": 100}
agent = Agent(model, instructions="Be brief.", model_settings=settings)
print(agent.run_sync("Name three colours.").output)
# ANCHOR_END: chat

answer = agent.run_sync("Name three colours.")
assert answer.output and answer.usage.output_tokens > 0, answer


# ANCHOR: stream
async def streamed() -> str:
    async with agent.run_stream("Name three colours.") as result:
        async for text in result.stream_text(delta=True):
            print(text, end="", flush=True)
        return await result.get_output()


# ANCHOR_END: stream
assert asyncio.run(streamed()) == answer.output


# ANCHOR: structured
class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    coast: bool


# By a function that the model is made to call, and by the form of its answer.
for output in (ToolOutput(City), NativeOutput(City)):
    city = Agent(model, output_type=output, model_settings=settings).run_sync("Invent a city.")
    print(city.output)
    # ANCHOR_END: structured
    assert isinstance(city.output, City), city


class Anything(BaseModel):
    """An object; the model is told of the form and not held to it."""

    text: str | None = None


told = Agent(model, output_type=PromptedOutput(Anything), model_settings=settings)
try:
    assert isinstance(told.run_sync("Say anything.").output, Anything)
except UnexpectedModelBehavior as error:
    # A small model makes an object that is another, or too long. The server refused nothing.
    print(error)

# ANCHOR: tools
cities = []


def get_weather(city: str) -> str:
    """The weather of a city."""
    cities.append(city)
    return "21 degrees, sunny"


# With an output that is a function too, the model must call one of the two.
agent = Agent(
    model,
    tools=[get_weather],
    output_type=ToolOutput(City),
    model_settings={"temperature": 0, "max_tokens": 100},
)
# ANCHOR_END: tools
try:
    agent.run_sync("What is the weather in Paris?")
except (UnexpectedModelBehavior, UsageLimitExceeded) as error:
    # A small model may go on calling. The server refused nothing.
    print(error)

try:
    Agent(OpenAIChatModel("gpt-4", provider=model._provider), model_settings=settings).run_sync(
        "Hello"
    )
except ModelHTTPError as error:
    assert error.status_code == 404, error
else:
    raise AssertionError("a model that is not served is refused")
print("ok")
