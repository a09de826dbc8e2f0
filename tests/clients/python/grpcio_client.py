"""gRPC with stubs of our own protocol: `pip install grpcio grpcio-tools`."""

# ANCHOR: stubs
# Python's side of the API is made from the .proto files. A program of yours does this once and
# keeps the result.
import json
import sys
import tempfile

import grpc
from grpc_tools import protoc

stubs = tempfile.mkdtemp()
arguments = ["", "-Iproto", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
assert protoc.main([*arguments, "palimpsest/v1/inference.proto"]) == 0
sys.path.insert(0, stubs)

from palimpsest.v1 import inference_pb2 as api  # noqa: E402
from palimpsest.v1 import inference_pb2_grpc as service  # noqa: E402

# ANCHOR_END: stubs

# ANCHOR: chat
channel = grpc.insecure_channel("127.0.0.1:50051")
inference = service.InferenceStub(channel)
request = api.GenerateRequest(
    chat=api.Chat(messages=[api.ChatMessage(role="user", content="Name three colours.")]),
    stopping=api.Stopping(max_tokens=16),
    kv=api.KvContract(budget=256),
)
text = ""
for event in inference.Generate(request, timeout=120):
    if event.WhichOneof("event") == "delta":
        text += event.delta.text
    elif event.WhichOneof("event") == "finished":
        print(text, event.finished.usage.held_slots, "entries held per KV head")
# ANCHOR_END: chat

usage = event.finished.usage
assert text and usage.generated_tokens > 0 and usage.held_bytes > 0, event
kinds = [event.WhichOneof("event") for event in inference.Generate(request)]
assert kinds[0] == "started" and kinds[-1] == "finished", kinds
assert set(kinds[1:-1]) == {"delta"}, kinds

# ANCHOR: structured
schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "coast": {"type": "boolean"}},
    "required": ["name", "coast"],
    "additionalProperties": False,
}
request = api.GenerateRequest(
    chat=api.Chat(messages=[api.ChatMessage(role="user", content="Invent a city.")]),
    stopping=api.Stopping(max_tokens=100),
    guide=api.Guide(json_schema=json.dumps(schema)),
)
events = inference.Generate(request)
city = json.loads("".join(event.delta.text for event in events))
print(city)
# ANCHOR_END: structured

assert set(city) == {"name", "coast"}, city

# ANCHOR: tools
weather = api.Tool(
    name="get_weather",
    description="The weather of a city",
    parameters=json.dumps({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }),
)
request = api.GenerateRequest(
    chat=api.Chat(
        messages=[api.ChatMessage(role="user", content="What is the weather in Paris?")],
        tools=[weather],
        tool_mode=api.TOOL_MODE_REQUIRED,
    ),
    stopping=api.Stopping(max_tokens=64),
)
name = arguments = ""
for event in inference.Generate(request):
    for call in event.delta.tool_calls:
        name += call.name
        arguments += call.arguments
print(name, json.loads(arguments))
# ANCHOR_END: tools

assert name == "get_weather" and set(json.loads(arguments)) == {"city"}, (name, arguments)

model = inference.GetModel(api.GetModelRequest())
assert model.name == "SmolLM2-135M-Instruct", model
tokens = inference.Tokenize(api.TokenizeRequest(text="Once upon a time"))
assert len(tokens.ids) == len(tokens.pieces) > 0, tokens

# ANCHOR: errors
try:
    request = api.GenerateRequest(text="Hello", kv=api.KvContract(budget=3))
    list(inference.Generate(request))
except grpc.RpcError as error:
    reason = dict(error.trailing_metadata())["palimpsest-reason"]
    print(error.code(), reason, error.details())
    # ANCHOR_END: errors
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and reason == "bad_contract", error
else:
    raise AssertionError("a budget that cannot be is refused")

# A deadline, and a client that goes away.
endless = api.Stopping(max_tokens=4096, ignore_eos=True)
try:
    list(inference.Generate(api.GenerateRequest(text="Hello", stopping=endless), timeout=0.5))
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
else:
    raise AssertionError("a deadline ends a request")
call = inference.Generate(api.GenerateRequest(text="Hello", stopping=endless))
next(call)
call.cancel()
print("ok")
