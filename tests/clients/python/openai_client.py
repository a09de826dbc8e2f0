"""OpenAI's client for Python: `pip install openai`."""

# ANCHOR: chat
import json

import openai
from openai import OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model="SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=16,
    temperature=0,
    extra_body={"kv_budget": 256},
)
print(answer.choices[0].message.content)
print(answer.usage.kv["held_bytes"], "bytes of cache")
# ANCHOR_END: chat

choice = answer.choices[0]
assert choice.message.role == "assistant" and choice.message.content, choice
assert choice.finish_reason in ("stop", "length"), choice
assert choice.message.tool_calls is None and choice.logprobs is None, choice
usage = answer.usage
assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
assert usage.prompt_tokens_details.cached_tokens >= 0, usage
assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-"), answer
assert answer._request_id, "an answer's header names its request"
assert "SmolLM2-135M-Instruct" in [model.id for model in client.models.list()]
assert client.models.retrieve("SmolLM2-135M-Instruct").object == "model"

# ANCHOR: stream
stream = client.chat.completions.create(
    model="SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=16,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
text = ""
for chunk in stream:
    for piece in chunk.choices:
        text += piece.delta.content or ""
    if chunk.usage:
        print(text, chunk.usage.completion_tokens, "tokens")
# ANCHOR_END: stream

assert text == choice.message.content, (text, choice.message.content)
assert chunk.usage.completion_tokens == usage.completion_tokens, chunk

# ANCHOR: tools
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
asked = {"model": "SmolLM2-135M-Instruct", "tools": tools, "max_tokens": 64, "temperature": 0}
message = (
    client.chat.completions
    .create(messages=messages, tool_choice="required", **asked)
    .choices[0]
    .message
)
call = message.tool_calls[0]
print(call.function.name, json.loads(call.function.arguments))

messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees, sunny"}]
answer = client.chat.completions.create(messages=messages, tool_choice="none", **asked)
print(answer.choices[0].message.content)
# ANCHOR_END: tools

arguments = json.loads(call.function.arguments)
assert call.type == "function" and call.function.name == "get_weather" and call.id, call
assert isinstance(arguments["city"], str), arguments
assert arguments["unit"] in ("celsius", "fahrenheit"), arguments
assert answer.choices[0].message.content, answer

streamed = {"id": "", "name": "", "arguments": ""}
finish_reason = None
named = {"type": "function", "function": {"name": "get_weather"}}
for chunk in client.chat.completions.create(
    messages=messages[:1], tool_choice=named, stream=True, **asked
):
    for piece in chunk.choices:
        finish_reason = piece.finish_reason or finish_reason
        for part in piece.delta.tool_calls or []:
            assert part.index == 0, part
            streamed["id"] += part.id or ""
            streamed["name"] += part.function.name or ""
            streamed["arguments"] += part.function.arguments or ""
assert streamed["id"] and streamed["name"] == "get_weather", streamed
assert set(json.loads(streamed["arguments"])) == {"city", "unit"}, streamed
assert finish_reason in ("tool_calls", "stop"), finish_reason


# ANCHOR: structured
class City(BaseModel):
    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99_999_999)
    coast: bool


parsed = client.chat.completions.parse(
    model="SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Invent a city."}],
    response_format=City,
    max_tokens=100,
    temperature=0,
)
print(parsed.choices[0].message.parsed)
# ANCHOR_END: structured

assert isinstance(parsed.choices[0].message.parsed, City), parsed
with client.chat.completions.stream(
    model="SmolLM2-135M-Instruct",
    messages=[{"role": "user", "content": "Invent a city."}],
    response_format=City,
    max_tokens=100,
    temperature=0,
) as stream:
    kinds = {event.type for event in stream}
    final = stream.get_final_completion()
assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
assert final.choices[0].message.parsed == parsed.choices[0].message.parsed, final

# ANCHOR: embeddings
embedded = client.embeddings.create(
    model="SmolLM2-135M-Instruct", input=["a bridge over a river", "a river crossing"]
)
print(len(embedded.data), "embeddings of", len(embedded.data[0].embedding), "numbers")
# ANCHOR_END: embeddings

assert [one.index for one in embedded.data] == [0, 1], embedded
assert abs(sum(x * x for x in embedded.data[0].embedding) - 1) < 1e-3
assert embedded.usage.prompt_tokens == embedded.usage.total_tokens > 0, embedded.usage

# ANCHOR: likelihood
told = client.completions.create(
    model="SmolLM2-135M-Instruct",
    prompt="Once upon a time",
    echo=True,
    logprobs=1,
    max_tokens=0,
)
print(told.choices[0].logprobs.token_logprobs)
# ANCHOR_END: likelihood

logprobs = told.choices[0].logprobs
assert told.choices[0].text == "Once upon a time" == "".join(logprobs.tokens), told
assert logprobs.token_logprobs[0] is None and max(logprobs.token_logprobs[1:]) <= 0, logprobs

# ANCHOR: responses
first = client.responses.create(
    model="SmolLM2-135M-Instruct",
    input="Name three colours.",
    max_output_tokens=16,
    temperature=0,
)
second = client.responses.create(
    model="SmolLM2-135M-Instruct",
    input="And three animals?",
    previous_response_id=first.id,
    max_output_tokens=16,
)
print(second.output_text)
# ANCHOR_END: responses

assert first.id.startswith("resp_") and second.output_text, second

# ANCHOR: errors
try:
    client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Hello"}],
        extra_body={"kv_budget": 3},
    )
except openai.BadRequestError as error:
    print(error.code, error.param, error.message)
# ANCHOR_END: errors


def refused(kind: type, **changes) -> openai.APIStatusError:
    """The error that a changed request gets."""
    request = {"model": "SmolLM2-135M-Instruct", "messages": messages[:1], "max_tokens": 1}
    try:
        client.chat.completions.create(**{**request, **changes})
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} expected for {changes}")


assert refused(openai.BadRequestError, extra_body={"kv_budget": 3}).param == "kv_budget"
assert refused(openai.NotFoundError, model="gpt-4").code == "model_not_found"
assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
assert refused(openai.BadRequestError, messages=[]).param
image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
error = refused(openai.BadRequestError, messages=[{"role": "user", "content": image}])
assert error.param == "messages[0].content", error
cycle = {"$ref": "#"}
schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": cycle, "strict": True}}
assert refused(openai.BadRequestError, response_format=schema).code == "bad_guide"
print("ok")
