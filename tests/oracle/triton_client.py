"""Triton's client for gRPC against a running service: `triton_client.py HOST:PORT`. Ends with "ok".

Run by tests/tests/clients.rs.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

KEY = {"authorization": "Bearer secret"}
OURS = {"ignore_eos": True, "kv_budget": 60, "kv_policy": "window", "latent_memory": "none"}


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_server_live(headers=KEY) and client.is_server_ready(headers=KEY)
    assert client.is_model_ready("tiny", headers=KEY)
    assert not client.is_model_ready("other", headers=KEY)
    assert client.get_server_metadata(headers=KEY).name == "palimpsest"
    metadata = client.get_model_metadata("tiny", headers=KEY)
    assert [tensor.name for tensor in metadata.inputs] == ["text_input"], metadata
    assert [tensor.name for tensor in metadata.outputs] == ["text_output"], metadata

    parameters = {"max_tokens": 9, "temperature": 0.0, "seed": 1, **OURS}
    whole = client.infer(
        "tiny",
        [text("hello there")],
        outputs=[triton.InferRequestedOutput("text_output")],
        request_id="mine",
        parameters=parameters,
        headers=KEY,
    )
    answer = whole.as_numpy("text_output")
    response = whole.get_response()
    assert answer.shape == (1,) and response.id == "mine", response
    assert response.parameters["finish_reason"].string_param == "length", response
    assert response.parameters["generated_tokens"].int64_param == 9, response
    assert response.parameters["held_bytes"].int64_param > 0, response

    for prompt, pieces in zip(
        ["hello there", "and now?"], streamed(client, ["hello there", "and now?"], parameters)
    ):
        said = b"".join(piece.as_numpy("text_output")[0] for piece in pieces)
        last = pieces[-1].get_response().parameters
        assert last["generated_tokens"].int64_param == 9, last
        if prompt == "hello there":
            assert said == answer[0], (said, answer)

    for refused, words in [
        (lambda: client.infer("other", [text("a")], headers=KEY), "has the model"),
        (lambda: client.infer("tiny", [text("a")]), "API key"),
        (lambda: client.infer("tiny", [text("a", "image")], headers=KEY), "`image`"),
        (
            lambda: client.infer("tiny", [text("a")], parameters={"tempo": 1}, headers=KEY),
            "`tempo`",
        ),
        (lambda: client.infer("tiny", [text("a")], sequence_id=7, headers=KEY), "`sequence_"),
    ]:
        try:
            refused()
        except InferenceServerException as error:
            assert words in error.message(), error
        else:
            raise AssertionError(f"{words} expected")
    print("ok")


def text(content: str, name: str = "text_input") -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([content.encode()], dtype=np.object_))
    return tensor


def streamed(client, prompts: list[str], parameters: dict) -> list[list]:
    """The pieces of the answers to prompts on one stream."""
    came: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)), headers=KEY)
    for number, prompt in enumerate(prompts):
        client.async_stream_infer(
            "tiny",
            [text(prompt)],
            request_id=str(number),
            parameters=parameters,
            enable_empty_final_response=True,
        )
    answers = [[] for _ in prompts]
    ended = 0
    while ended < len(prompts):
        result, error = came.get(timeout=60)
        assert error is None, error
        response = result.get_response()
        answers[int(response.id)].append(result)
        ended += response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return answers


if __name__ == "__main__":
    main(sys.argv[1])
