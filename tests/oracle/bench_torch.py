#!/usr/bin/env python3
"""One measurement of transformers on PyTorch, float32, CPU: prefill of `depth` tokens, or decode
after them.

usage: bench_torch.py prefill|decode MODEL.gguf DEPTH THREADS DECODE_TOKENS

Prints one JSON line. Tokens are pseudo-random: speed does not depend on them. Needs torch,
transformers, accelerate and gguf.
"""

import json
import pathlib
import sys
import time

import torch
import transformers


def main():
    kind, model_path, (depth, threads, decode_tokens) = (
        sys.argv[1],
        pathlib.Path(sys.argv[2]),
        map(int, sys.argv[3:6]),
    )
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_path.parent,
        gguf_file=model_path.name,
        dtype=torch.float32,
        attn_implementation="sdpa",
    ).eval()
    tokens = torch.randint(100, model.config.vocab_size, (1, depth))
    with torch.inference_mode():
        model(tokens[:, :16], logits_to_keep=1)  # the first call also pays for set-up
        start = time.perf_counter()
        output = model(tokens, use_cache=True, logits_to_keep=1)
        seconds, num_tokens = time.perf_counter() - start, depth
        if kind == "decode":
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            for _ in range(decode_tokens):
                output = model(token, past_key_values=cache, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            seconds, num_tokens = time.perf_counter() - start, decode_tokens
    row = {"kind": kind, "depth": depth, "tokens_per_second": num_tokens / seconds}
    print(json.dumps({**row, "torch": torch.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
