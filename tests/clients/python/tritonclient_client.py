"""Triton's client for gRPC: `pip install "tritonclient[grpc]"`."""

# ANCHOR: infer
import queue

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient("127.0.0.1:50051")


def prompt(text: str) -> triton.InferInput:
    """A text as the protocol has it: BYTES of the shape [1]."""
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return tensor


result = client.infer(
    "SmolLM2-135M-Instruct",
    [prompt("Once upon a time")],
    parameters={"max_tokens": 16, "kv_budget": 256},
)
print(result.as_numpy("text_output")[0].decode())
# ANCHOR_END: infer

assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("SmolLM2-135M-Instruct") and not client.is_model_ready("other")
whole = result.as_numpy("text_output")[0]
assert whole and result.get_response().parameters["generated_tokens"].int64_param == 16, result

# ANCHOR: stream
came = queue.Queue()
client.start_stream(lambda result, error: came.put((result, error)))
client.async_stream_infer(
    "SmolLM2-135M-Instruct",
    [prompt("Once upon a time")],
    parameters={"max_tokens": 16, "kv_budget": 256},
    enable_empty_final_response=True,
)
text = b""
while True:
    result, error = came.get(timeout=120)
    if error:
        raise error
    text += result.as_numpy("text_output")[0]
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
client.stop_stream()
print(text.decode())
# ANCHOR_END: stream

assert text == whole, (text, whole)

try:
    client.infer("SmolLM2-135M-Instruct", [prompt("Hello")], parameters={"kv_budget": 3})
except InferenceServerException as error:
    assert "budget" in error.message(), error
else:
    raise AssertionError("a budget that cannot be is refused")
print("ok")
