"""Asks a running server one question over gRPC and prints the answer as it comes.

    pip install grpcio grpcio-tools
    palimpsest serve                                    # in another terminal
    python3 examples/grpc_client.py "Name three colours."

The second argument is the server's address, if it is not the default one.
"""

import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc

# Python's side of the API is made from the .proto file. A program of yours does this once and keeps
# the result.
proto = Path(__file__).parent.parent / "proto"
stubs = tempfile.mkdtemp()
arguments = ["", f"-I{proto}", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
if protoc.main([*arguments, "palimpsest/v1/inference.proto"]) != 0:
    sys.exit("the stubs could not be made")
sys.path.insert(0, stubs)

from palimpsest.v1 import inference_pb2 as api  # noqa: E402
from palimpsest.v1 import inference_pb2_grpc as service  # noqa: E402

question = sys.argv[1] if len(sys.argv) > 1 else "Name three colours."
server = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:50051"

# What is not set is the server's choice: the model, the sampling, the rest of the contract.
request = api.GenerateRequest(
    chat=api.Chat(messages=[api.ChatMessage(role="user", content=question)]),
    stopping=api.Stopping(max_tokens=32),
    kv=api.KvContract(budget=256),
)

with grpc.insecure_channel(server) as channel:
    try:
        # Started comes once, then a delta for each piece of text, then Finished once.
        for event in service.InferenceStub(channel).Generate(request, timeout=120):
            kind = event.WhichOneof("event")
            if kind == "started":
                print(event.started.reserved_bytes, "bytes reserved", file=sys.stderr)
            elif kind == "delta":
                print(event.delta.text, end="", flush=True)
            elif kind == "finished":
                print(f"\n{event.finished.usage.held_slots} entries held per KV head")
    except grpc.RpcError as error:
        # The reason is a word that programs may rely on: see docs/src/troubleshooting.md.
        reason = dict(error.trailing_metadata() or {}).get("palimpsest-reason", "none")
        sys.exit(f"{error.details()} [{reason}]")
