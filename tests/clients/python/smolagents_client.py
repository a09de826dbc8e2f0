"""smolagents: `pip install "smolagents[openai]"`."""

# ANCHOR: chat
import json

import openai
from smolagents import ChatMessage, OpenAIModel, tool

model = OpenAIModel(
    model_id="SmolLM2-135M-Instruct",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    temperature=0,
    max_tokens=64,
)
question = [ChatMessage(role="user", content=[{"type": "text", "text": "Name three colours."}])]
print(model.generate(question).content)
# ANCHOR_END: chat

answer = model.generate(question)
assert answer.content and answer.token_usage.output_tokens > 0, answer
text = "".join(delta.content or "" for delta in model.generate_stream(question))
assert text == answer.content, (text, answer)


# ANCHOR: tools
@tool
def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return "21 degrees, sunny"


called = model.generate(question, tools_to_call_from=[get_weather])
print(called.tool_calls[0].function.name, called.tool_calls[0].function.arguments)
# ANCHOR_END: tools

assert called.tool_calls[0].function.name == "get_weather", called

schema = {
    "type": "object",
    "properties": {"thought": {"type": "string", "maxLength": 20}},
    "required": ["thought"],
    "additionalProperties": False,
}
guided = model.generate(
    question,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "step", "strict": True, "schema": schema},
    },
)
assert set(json.loads(guided.content)) == {"thought"}, guided

strange = OpenAIModel("gpt-4", api_base="http://127.0.0.1:8000/v1", api_key="none")
try:
    strange.generate(question)
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("a model that is not served is refused")
print("ok")
