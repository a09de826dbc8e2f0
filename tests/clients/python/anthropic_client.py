"""Anthropic's client for Python: `pip install anthropic`."""

# ANCHOR: chat
import anthropic
from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:8000", api_key="none")
message = client.messages.create(
    model="SmolLM2-135M-Instruct",
    system="Be brief.",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=32,
    extra_body={"temperature": 0, "kv_budget": 256},
)
print(message.content[0].text, message.usage.output_tokens)
# ANCHOR_END: chat

assert message.type == "message" and message.role == "assistant", message
assert message.content[0].type == "text" and message.content[0].text, message
assert message.stop_reason in ("end_turn", "max_tokens"), message
assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0, message.usage

# ANCHOR: stream
with client.messages.stream(
    model="SmolLM2-135M-Instruct",
    system="Be brief.",
    messages=[{"role": "user", "content": "Name three colours."}],
    max_tokens=32,
    extra_body={"temperature": 0},
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    final = stream.get_final_message()
# ANCHOR_END: stream

assert final.content[0].text == message.content[0].text, final
assert final.usage.output_tokens == message.usage.output_tokens, final

# ANCHOR: count
counted = client.messages.count_tokens(
    model="SmolLM2-135M-Instruct", messages=[{"role": "user", "content": "Name three colours."}]
)
print(counted.input_tokens)
# ANCHOR_END: count

assert counted.input_tokens > 0, counted

# ANCHOR: errors
try:
    client.messages.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=1,
        extra_body={"kv_budget": 3},
    )
except anthropic.BadRequestError as error:
    print(error.body["error"]["type"], error.body["error"]["message"])
    # ANCHOR_END: errors

    assert error.body["error"]["param"] == "kv_budget", error.body
else:
    raise AssertionError("a budget that cannot be is refused")
try:
    client.messages.create(
        model="gpt-4", messages=[{"role": "user", "content": "Hello"}], max_tokens=1
    )
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error", error.body
else:
    raise AssertionError("a model that is not served is refused")
print("ok")
