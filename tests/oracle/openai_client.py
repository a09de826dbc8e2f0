"""The official `openai` client against a running service: `openai_client.py BASE_URL`. Ends with
"ok".

Run by tests/tests/openai.rs. Every call goes through the client's own models, which check the shape
of what comes back.
"""

import sys

import openai
from openai import OpenAI


def main(base_url: str) -> None:
    client = OpenAI(base_url=base_url, api_key="secret", max_retries=0, timeout=60)
    ours = {"ignore_eos": True, "kv_budget": 60, "kv_policy": "window", "latent_memory": "none"}
    messages = [{"role": "user", "content": "hello there"}]

    models = client.models.list()
    assert [model.id for model in models] == ["tiny"], models
    assert client.models.retrieve("tiny").id == "tiny"

    whole = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=9,
        temperature=0,
        seed=1,
        logprobs=True,
        top_logprobs=2,
        extra_body=ours,
    )
    choice = whole.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant", choice
    assert (
        whole.usage.completion_tokens == 9
        and whole.usage.total_tokens == whole.usage.prompt_tokens + 9
    )
    assert whole.usage.kv["held_bytes"] > 0, whole.usage
    assert len(choice.logprobs.content) == 9 and len(choice.logprobs.content[0].top_logprobs) == 2

    text, finish, usage = "", None, None
    stream = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=9,
        temperature=0,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=ours,
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for piece in chunk.choices:
            text += piece.delta.content or ""
            finish = piece.finish_reason or finish
    assert (text, finish) == (choice.message.content, "length"), (text, choice.message.content)
    assert usage.completion_tokens == 9

    two = client.completions.create(
        model="tiny",
        prompt=["ab", "cd"],
        n=2,
        max_tokens=3,
        seed=5,
        extra_body={"ignore_eos": True},
    )
    assert [one.index for one in two.choices] == [0, 1, 2, 3] and two.usage.completion_tokens == 12
    pieces = list(
        client.completions.create(
            model="tiny", prompt="ab", max_tokens=3, stream=True, extra_body={"ignore_eos": True}
        )
    )
    assert pieces[-1].choices[0].finish_reason == "length"

    check_responses(client, ours)

    expect(
        openai.NotFoundError,
        lambda: client.chat.completions.create(model="gpt-4", messages=messages),
    )
    expect(
        openai.BadRequestError, lambda: client.chat.completions.create(model="tiny", messages=[])
    )
    check_tools(client, messages, ours)
    wrong = OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
    expect(openai.AuthenticationError, wrong.models.list)
    print("ok")


def check_tools(client: OpenAI, messages: list, ours: dict) -> None:
    """A call that the model must make; its arguments follow the schema and end by themselves."""
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    asked = {
        "model": "tiny",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "max_tokens": 64,
        "extra_body": {**ours, "ignore_eos": False},
    }
    choice = client.chat.completions.create(messages=messages, **asked).choices[0]
    call = choice.message.tool_calls[0]
    assert call.function.name == "add" and call.type == "function" and call.id, choice

    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    talk = [*messages, choice.message, result]
    names = [
        piece.function.name
        for chunk in client.chat.completions.create(messages=talk, stream=True, **asked)
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or []
    ]
    assert [name for name in names if name] == ["add"], names

    two = [{"type": "web_search"}]
    error = expect(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="tiny", messages=messages, tools=two),
    )
    assert error.param == "tools[0].type", error


def check_responses(client: OpenAI, ours: dict) -> None:
    """A conversation that the service keeps."""
    asked = {"model": "tiny", "max_output_tokens": 9, "temperature": 0, "extra_body": ours}
    first = client.responses.create(
        input="hello there", instructions="Be brief", metadata={"a": "b"}, **asked
    )
    assert first.status == "incomplete" and first.output_text, first
    assert first.incomplete_details.reason == "max_output_tokens", first
    assert first.usage.output_tokens == 9 and first.usage.input_tokens_details.cached_tokens >= 0
    assert first.usage.total_tokens == first.usage.input_tokens + 9
    assert (first.metadata, first.instructions) == ({"a": "b"}, "Be brief")
    assert client.responses.retrieve(first.id) == first

    parts = [{"type": "input_text", "text": "and now?"}]
    second = client.responses.create(
        input=[{"role": "user", "content": parts}], previous_response_id=first.id, **asked
    )
    assert second.previous_response_id == first.id
    # Three pages, which the client asks for one after the other.
    items = client.responses.input_items.list(second.id, order="asc", limit=1)
    found = [(item.role, item.content[0].text) for item in items]
    expected = [("user", "hello there"), ("assistant", first.output_text), ("user", "and now?")]
    assert found == expected, found

    kinds, text, last = [], "", None
    stream = client.responses.create(
        input="and now?", previous_response_id=first.id, stream=True, **asked
    )
    for number, event in enumerate(stream):
        assert event.sequence_number == number, event
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds
    assert last.type == "response.incomplete" and last.response.output_text == text, last
    # The same conversation, asked again.
    assert text == second.output_text, (text, second.output_text)


def expect(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} expected")


if __name__ == "__main__":
    main(sys.argv[1])
