"""The official `anthropic` client against a running service: `anthropic_client.py BASE_URL`. Ends
with "ok".

Run by tests/tests/clients.rs. Every call goes through the client's own models, which check the
shape of what comes back.
"""

import sys

import anthropic
from anthropic import Anthropic


def main(base_url: str) -> None:
    client = Anthropic(base_url=base_url, api_key="secret", max_retries=0, timeout=60)
    ours = {"ignore_eos": True, "kv_budget": 60, "kv_policy": "window", "latent_memory": "none"}
    asked = {
        "model": "tiny",
        "max_tokens": 9,
        "system": "Be brief",
        "messages": [{"role": "user", "content": "hello there"}],
        "extra_body": {"temperature": 0, "seed": 1, **ours},
    }

    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").display_name == "tiny"

    message = client.messages.create(**asked)
    (block,) = message.content
    assert message.role == "assistant" and block.type == "text" and block.text, message
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None), message
    assert message.model == "tiny" and message.id.startswith("msg_") and message._request_id
    assert message.usage.output_tokens == 9 and message.usage.cache_read_input_tokens >= 0
    assert message.usage.kv["held_bytes"] > 0, message.usage

    counted = client.messages.count_tokens(
        model="tiny", system=asked["system"], messages=asked["messages"]
    )
    assert counted.input_tokens == total(message.usage), (counted, message.usage)

    # The client builds the message of the events, and complains of those that do not fit.
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == block.text == streamed.content[0].text, (text, block.text)
    assert streamed.stop_reason == "max_tokens" and streamed.usage.output_tokens == 9
    assert total(streamed.usage) == total(message.usage), (streamed.usage, message.usage)

    kinds = [event.type for event in client.messages.create(stream=True, **asked)]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    assert set(kinds[2:-3]) == {"content_block_delta"}, kinds

    stop = block.text[2:4]
    stopped = client.messages.create(**{**asked, "stop_sequences": [stop]})
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop), stopped

    marked = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    parts = [marked, {"type": "text", "text": " there"}]
    again = client.messages.create(**{**asked, "messages": [{"role": "user", "content": parts}]})
    assert again.content[0].text == block.text, again

    begun = [*asked["messages"], {"role": "assistant", "content": block.text[:3]}]
    assert client.messages.create(**{**asked, "messages": begun}).content, begun

    tools(client, asked)

    missing = expect(
        anthropic.NotFoundError, lambda: client.messages.create(**{**asked, "model": "other"})
    )
    assert missing.body["error"]["type"] == "not_found_error", missing.body
    assert missing.request_id == missing.body["request_id"], missing.body
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    content = [{"type": "image", "source": image}]
    for extra, place in [
        ({"messages": [{"role": "user", "content": content}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"max_tokens": 0}, "max_tokens"),
    ]:
        refused = expect(
            anthropic.BadRequestError,
            lambda extra=extra: client.messages.create(**{**asked, **extra}),
        )
        assert refused.body["error"]["param"] == place, refused.body
        assert place in refused.body["error"]["message"], refused.body
    wrong = Anthropic(base_url=base_url, api_key="wrong", max_retries=0)
    refused = expect(anthropic.AuthenticationError, lambda: wrong.messages.create(**asked))
    assert refused.body["error"]["type"] == "authentication_error", refused.body
    print("ok")


def tools(client: Anthropic, asked: dict) -> None:
    """A call that must be, whole and in pieces, and its result sent back."""
    # Arguments follow the schema and end by themselves.
    free = {**asked["extra_body"], "ignore_eos": False}
    asked = {**asked, "max_tokens": 64, "extra_body": free}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    add = {"name": "add", "description": "Adds", "input_schema": schema, "strict": True}
    forced = {**asked, "tools": [add], "tool_choice": {"type": "tool", "name": "add"}}
    called = client.messages.create(**forced)
    (call,) = called.content
    assert (call.type, call.name) == ("tool_use", "add") and call.id.startswith("toolu_"), called
    # A model of random weights writes no JSON: there may be no piece, and none is put together.
    events = list(client.messages.create(stream=True, **forced))
    (start,) = [event for event in events if event.type == "content_block_start"]
    assert (start.content_block.type, start.content_block.name) == ("tool_use", "add"), start
    deltas = {event.delta.type for event in events if event.type == "content_block_delta"}
    assert deltas <= {"input_json_delta"}, deltas

    conversation = [
        *asked["messages"],
        {"role": "assistant", "content": [{**call.model_dump(), "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "3"}],
        },
    ]
    answered = client.messages.create(**{**asked, "messages": conversation, "tools": [add]})
    assert answered.content, answered
    bare = client.messages.count_tokens(model="tiny", messages=asked["messages"])
    counted = client.messages.count_tokens(model="tiny", messages=asked["messages"], tools=[add])
    assert counted.input_tokens > bare.input_tokens, (counted, bare)


def total(usage) -> int:
    """Tokens of a prompt, which are counted in three parts."""
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def expect(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} expected")


if __name__ == "__main__":
    main(sys.argv[1])
