#!/usr/bin/env python3
"""Attention over a full cache in PyTorch, on the GPU that Palimpsest was measured on.

The shape is that of Llama 3.1 8B: 32 heads, 8 of them with keys and values, 128 elements, bf16.
Decoding reads the whole cache of every sequence, which is what a budget saves. Prints JSON lines:
seconds of one layer by events, the bytes that it reads, and their rate.
"""

import argparse
import json
import statistics

HEADS, KV_HEADS, DIM = 32, 8, 128


def seconds(torch, work, repeat):
    """Median of the seconds of some runs, after two that do not count."""
    times = []
    for number in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if number >= 2:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def attend(torch, queries, slots, rows):
    """One layer: `rows` new tokens of each of `queries` sequences, over `slots` tokens each."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    q = torch.randn(queries, HEADS, rows, DIM, **options)
    k, v = (torch.randn(queries, KV_HEADS, slots, DIM, **options) for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(q, k, v, is_causal=rows == slots and rows > 1, enable_gqa=True)


def decode(torch, sequences, slots, repeat):
    took = seconds(torch, attend(torch, sequences, slots, 1), repeat)
    size = 2 * sequences * KV_HEADS * slots * DIM * 2
    return {
        "kind": "peer decode attention", "sequences": sequences, "slots": slots,
        "seconds": took, "bytes_per_second": size / took,
    }  # fmt: skip


def prefill(torch, slots, repeat):
    took = seconds(torch, attend(torch, 1, slots, slots), repeat)
    # Two products of the lower triangle.
    operations = 2 * 2 * HEADS * DIM * slots * slots / 2
    return {
        "kind": "peer prefill attention", "slots": slots, "seconds": took,
        "operations_per_second": operations / took,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("SKIPPED: there is no PyTorch here")
        return
    if not torch.cuda.is_available():
        print("SKIPPED: PyTorch sees no GPU")
        return
    print(json.dumps({"kind": "peer", "torch": torch.__version__, "cuda": torch.version.cuda}))
    # The budget's 4,096 slots, and what a full cache reads in their place; 210 sequences of 128K
    # tokens fit no GPU.
    for sequences, slots in [(1, 4096), (64, 4096), (1, 131072), (7, 131072)]:
        print(json.dumps(decode(torch, sequences, slots, args.repeat)), flush=True)
        torch.cuda.empty_cache()
    for slots in [4096, 32768]:
        print(json.dumps(prefill(torch, slots, args.repeat)), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
