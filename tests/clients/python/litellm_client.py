"""LiteLLM: `pip install litellm`."""

# ANCHOR: chat
import asyncio
import json

import litellm
from pydantic import BaseModel, Field

server = {"api_base": "http://127.0.0.1:8000/v1", "api_key": "none"}
answer = litellm.completion(
    model="openai/SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=16,
    temperature=0,
    **server,
)
print(answer.choices[0].message.content)
# ANCHOR_END: chat

assert answer.choices[0].message.content, answer
assert answer.usage.completion_tokens > 0, answer.usage

# ANCHOR: stream
text = ""
for chunk in litellm.completion(
    model="openai/SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=16,
    temperature=0,
    stream=True,
    **server,
):
    text += chunk.choices[0].delta.content or ""
print(text)
# ANCHOR_END: stream

assert text == answer.choices[0].message.content, text

# ANCHOR: tools
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
called = litellm.completion(
    model="openai/SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
    tools=[weather],
    tool_choice={"type": "function", "function": {"name": "get_weather"}},
    max_tokens=64,
    temperature=0,
    **server,
)
call = called.choices[0].message.tool_calls[0]
print(call.function.name, json.loads(call.function.arguments))
# ANCHOR_END: tools

assert call.function.name == "get_weather", called
assert isinstance(json.loads(call.function.arguments)["city"], str), called


# ANCHOR: structured
class City(BaseModel):
    name: str = Field(max_length=20)
    coast: bool


answer = litellm.completion(
    model="openai/SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Invent a city."}],
    response_format=City,
    max_tokens=100,
    temperature=0,
    **server,
)
print(City.model_validate_json(answer.choices[0].message.content))
# ANCHOR_END: structured

# ANCHOR: anthropic
message = litellm.completion(
    model="anthropic/SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=16,
    temperature=0,
    api_base="http://127.0.0.1:8000",
    api_key="none",
)
print(message.choices[0].message.content)
# ANCHOR_END: anthropic

assert message.choices[0].message.content == text, message

# ANCHOR: bridge
# Anthropic's calls, which LiteLLM turns into OpenAI's.
bridged = asyncio.run(
    litellm.anthropic.messages.acreate(
        model="openai/SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=16,
        temperature=0,
        **server,
    )
)
print(bridged["content"][0]["text"])
# ANCHOR_END: bridge

assert bridged["role"] == "assistant" and bridged["content"][0]["text"] == text, bridged

# ANCHOR: responses
response = litellm.responses(
    model="openai/SmolLM2-135M-Instruct",
    input="Name three colours.",
    max_output_tokens=16,
    temperature=0,
    **server,
)
print(response.output[0].content[0].text)
# ANCHOR_END: responses

assert response.output[0].content[0].text == text, response

embedded = litellm.embedding(
    model="openai/SmolLM2-135M-Instruct", input=["a river"], encoding_format="float", **server
)
assert len(embedded.data[0]["embedding"]) > 0, embedded

try:
    litellm.completion(
        model="openai/gpt-4", messages=[{"role": "user", "content": "Hello"}], **server
    )
except litellm.NotFoundError as error:
    assert "this server has the model" in str(error), error
else:
    raise AssertionError("a model that is not served is refused")
try:
    litellm.completion(
        model="openai/SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Hello"}],
        kv_budget=3,
        **server,
    )
except litellm.BadRequestError as error:
    assert "kv_budget" in str(error), error
else:
    raise AssertionError("a budget that cannot be is refused")
print("ok")
