#!/usr/bin/env python3
"""Single kernels of a fatbin beside PyTorch in f64, without Rust: correctness and time.

    rebuild.sh kernels/cu kernels.fatbin && launch.py kernels.fatbin

The driver is called through ctypes, in PyTorch's own context: CuPy need not be there. Prints a JSON
line for each case: the largest difference, seconds by events, and bytes per second.
"""

import argparse
import ctypes
import json
import math
import pathlib
import statistics
import sys

SLOTS, SPLIT, NONE = 32, 512, 0xFFFFFFFF


class Kernels:
    """The functions of a fatbin."""

    def __init__(self, torch, file):
        torch.zeros(1, device="cuda")  # makes the context that is current from now on
        self.torch, self.driver = torch, ctypes.CDLL("libcuda.so.1")
        self.image = ctypes.create_string_buffer(pathlib.Path(file).read_bytes())
        self.module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(self.module), self.image)

    def call(self, name, *args):
        status = getattr(self.driver, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(status, ctypes.byref(text))
            sys.exit(f"{name}: {(text.value or b'?').decode()}")

    def launch(self, name, grid, threads, shared, *args):
        """Starts a kernel. Tensors are passed as addresses, floats as f32; of integers the width
        is told: `ctypes.c_uint32` or `c_uint64`."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), self.module, name.encode())
        if shared > 48 << 10:
            # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call("cuFuncSetAttribute", function, 8, shared)
        values = [self.value(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*[
            ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values
        ])
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        x, y = grid
        self.call(
            "cuLaunchKernel", function, x, y, 1, threads, 1, 1, shared, stream, pointers, None
        )

    def value(self, arg):
        if isinstance(arg, self.torch.Tensor):
            return ctypes.c_void_p(arg.data_ptr())
        return ctypes.c_float(arg) if isinstance(arg, float) else arg

    def seconds(self, work, repeat=20):
        """Median of single launches, after two that do not count."""
        times = []
        for number in range(repeat + 2):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            if number >= 2:
                times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def report(self, name, got, want, work, size):
        """What a case found; `size`: bytes that it must move."""
        scale = max(1.0, want.abs().max().item())
        difference = (got.double() - want).abs().max().item() / scale
        took = self.seconds(work)
        line = {
            "kind": "single kernel", "case": name, "difference": difference, "seconds": took,
            "bytes_per_second": size / took,
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        return difference


def rms_norm(kernels, rows, width):
    torch = kernels.torch
    x, weight = torch.randn(rows, width, device="cuda"), torch.rand(width, device="cuda")
    out = torch.empty_like(x)

    def work():
        eps = 1e-5
        kernels.launch("rms_norm", (rows, 1), 256, 0, x, weight, eps, ctypes.c_uint32(width), out)

    work()
    wide = x.double()
    want = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    size = 2 * 4 * rows * width
    return kernels.report(f"rms_norm {rows} x {width}", out, want, work, size)


def silu_mul(kernels, rows, width):
    torch = kernels.torch
    both = torch.randn(rows, 2 * width, device="cuda")
    out = torch.empty(rows, width, device="cuda")

    def work():
        kernels.launch("silu_mul", (rows, 1), 256, 0, both, ctypes.c_uint32(width), out)

    work()
    gate, up = both.double().split(width, dim=1)
    want = torch.nn.functional.silu(gate) * up
    return kernels.report(f"silu_mul {rows} x {width}", out, want, work, 3 * 4 * rows * width)


def decode_bytes(dim):
    """Shared memory of a block: stages of four warps, or their partial results."""
    stages = 4 * 2 * 2 * SLOTS * (dim + 8) * 2
    return max(stages, 4 * (16 * dim + 32) * 4)


def attention_decode(kernels, sequences, slots, heads=32, kv_heads=8, dim=128):
    """One layer of decoding over pages in a shuffled order, splits merged."""
    torch = kernels.torch
    device = {"device": "cuda"}
    items, pages_each = sequences * kv_heads, -(-slots // SLOTS)
    pages = torch.randn(items * pages_each, 2, SLOTS, dim, dtype=torch.float16, **device)
    tables = torch.randperm(items * pages_each, dtype=torch.int32, **device)
    q = torch.randn(sequences, heads, dim, **device)
    out = torch.empty_like(q)
    records, splits, merges = [], [], []
    parts = -(-slots // SPLIT)
    for item in range(items):
        row, head = divmod(item, kv_heads)
        # row, rows, KV head, slots, table, first visible, memory, centroids, output, flags
        records.append([row, 1, head, slots, item * pages_each, -1, 0, 0, 0, 0])
        for part in range(parts):
            partial = item * parts + part if parts > 1 else -1
            splits.append([item, part * SPLIT, partial, int(part == 0)])
        merges.append([item, item * parts, parts, 0])
    integers = {"dtype": torch.int32, **device}
    records, splits, merges = (torch.tensor(rows, **integers) for rows in (records, splits, merges))
    partials = torch.empty(items * parts * (16 * dim + 32), **device)
    nothing = torch.zeros(16, **integers)
    scale = math.log2(math.e) / math.sqrt(dim)
    shape = [ctypes.c_uint32(value) for value in (heads, kv_heads, dim)]

    def work():
        kernels.launch(
            f"attention_decode_{dim}", (len(splits), 1), 128, decode_bytes(dim), records, tables,
            nothing, nothing, pages, q, out, *shape, scale, splits, partials,
        )  # fmt: skip
        if parts > 1:
            kernels.launch(
                "attention_merge", (16, items), 128, 0, records, merges, partials, out, *shape,
                ctypes.c_uint32(dim),
            )  # fmt: skip

    work()
    order = pages[tables.long()].view(sequences, kv_heads, pages_each, 2, SLOTS, dim)
    keys, values = (
        order[:, :, :, side].reshape(sequences, kv_heads, -1, dim)[:, :, :slots].double()
        for side in (0, 1)
    )
    grouped = q.double().view(sequences, kv_heads, heads // kv_heads, dim)
    weights = torch.softmax(grouped @ keys.transpose(2, 3) / math.sqrt(dim), dim=3)
    want = (weights @ values).view(sequences, heads, dim)
    size = 2 * 2 * items * slots * dim
    return kernels.report(f"attention_decode {sequences} x {slots}", out, want, work, size)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fatbin")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("SKIPPED: there is no PyTorch here")
        return
    if not torch.cuda.is_available():
        print("SKIPPED: PyTorch sees no GPU")
        return
    kernels = Kernels(torch, args.fatbin)
    worst = max(
        rms_norm(kernels, 1, 4096), rms_norm(kernels, 64, 4096), silu_mul(kernels, 1, 14336),
        silu_mul(kernels, 64, 14336),
    )  # fmt: skip
    # Queries, keys and probabilities are halves.
    halves = max(attention_decode(kernels, *case) for case in [(1, 500), (1, 4096), (64, 4096)])
    if worst > 2e-6 or halves > 4e-3:
        sys.exit("a kernel differs from PyTorch in f64")


if __name__ == "__main__":
    main()
