"""Tools over Anthropic's client for Python: `pip install anthropic`."""

# ANCHOR: tools
from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:8000", api_key="none")
tools = [
    {
        "name": "get_weather",
        "description": "The weather of a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
asked = {"model": "SmolLM2-135M-Instruct", "tools": tools, "max_tokens": 64}
message = client.messages.create(
    messages=messages,
    tool_choice={"type": "tool", "name": "get_weather"},
    extra_body={"temperature": 0},
    **asked,
)
call = next(block for block in message.content if block.type == "tool_use")
print(call.name, call.input)

result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees, sunny"}
messages += [
    {"role": "assistant", "content": message.content},
    {"role": "user", "content": [result]},
]
answer = client.messages.create(messages=messages, tool_choice={"type": "none"}, **asked)
print(answer.content[0].text)
# ANCHOR_END: tools

assert message.stop_reason == "tool_use", message
assert call.name == "get_weather" and call.id and isinstance(call.input["city"], str), call
assert answer.content[0].type == "text", answer

with client.messages.stream(
    messages=messages[:1], tool_choice={"type": "any"}, extra_body={"temperature": 0}, **asked
) as stream:
    kinds = {event.type for event in stream}
    final = stream.get_final_message()
assert "input_json" in kinds, kinds
block = next(block for block in final.content if block.type == "tool_use")
assert block.input == call.input and final.stop_reason == "tool_use", final
counted = client.messages.count_tokens(
    model="SmolLM2-135M-Instruct", messages=messages[:1], tools=tools
)
assert counted.input_tokens > 0, counted
print("ok")
