"""Asks a running server one question with OpenAI's client, and prints the answer as it comes.

    pip install openai
    palimpsest serve                                    # in another terminal
    python3 examples/openai_client.py "Name three colours."

The second argument is the server's address, if it is not the default one.
"""

import sys

import openai

question = sys.argv[1] if len(sys.argv) > 1 else "Name three colours."
server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1"

# The key is looked at only where the server has a file of keys.
client = openai.OpenAI(base_url=server, api_key="none")

# A server has one model. Its name is needed, because OpenAI's client sends one.
model = client.models.list().data[0].id

try:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        # Ours: what the request may hold of its past. OpenAI's client passes it on as it is.
        extra_body={"kv_budget": 256},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            # What was held and evicted comes with the usage, in the last chunk.
            print(f"\n{chunk.usage.kv['held_slots']} entries held per KV head")
except openai.APIStatusError as error:
    # The code is a word that programs may rely on: see docs/src/troubleshooting.md.
    sys.exit(f"{error.message} [{error.code}]")
