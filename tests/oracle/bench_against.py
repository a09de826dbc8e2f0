#!/usr/bin/env python3
"""What a change costs: this program and another one of ours, as servers beside each other.

Both servers run at once, and only one works at a time. A round asks first one and then the other,
and the next round in the other order, so that a machine that grows slower meets both alike. After
some rounds both are started anew, in the other order: where a process happens to lie in memory
makes it faster or slower by some percent for as long as it lives. Every prompt is new: nothing of
it is known to the server. Shown are the seconds of the first reading, the seconds per token of the
answer after it, and the ratio of this program to the other: the median of the pairs of processes,
each with the median of its rounds, and its interval.

Run as `cargo xtask bench-against --other FILE --model FILE`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bench_peers  # noqa: E402  (it stands beside this file)
from bench_turns import document, free_port, server, table  # noqa: E402


def start(stack, args, name):
    """A server of one of the programs; its URL."""
    program = args.palimpsest if name == "this" else args.other
    alone = args.this_alone if name == "this" else []
    port = free_port()
    command = [
        program, "serve", "--model", args.model, "--threads", args.threads,
        "--listen", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{port}", *args.ours, *alone,
    ]  # fmt: skip
    log = bench_peers.PEERS / f"against-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    url, _ = stack.enter_context(server(command, port, log))
    return url


def ask(url, prompt, answer_tokens):
    """Seconds until the first token, and seconds per token after it."""
    body = {
        "prompt": prompt, "max_tokens": answer_tokens, "temperature": 0, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    begun, times = time.monotonic(), []
    with urllib.request.urlopen(request, timeout=3600) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
    return {"reading": times[0] - begun, "per_token": (times[-1] - times[0]) / (answer_tokens - 1)}


def middle(values):
    """Median with the interval that holds the true median of 95 of 100 such samples (bootstrap).

    >>> middle([1.0, 1.0, 1.0])
    {'median': 1.0, 'low': 1.0, 'high': 1.0}
    """
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return {"median": statistics.median(values), "low": medians[50], "high": medians[1949]}


def measure(args):
    """Rows of figures, one for each thing that is timed, and what every pair measured."""
    programs, pairs = ["this", "other"], []
    for number in range(args.pairs):
        names = programs if number % 2 == 0 else programs[::-1]
        with contextlib.ExitStack() as stack:
            urls = {name: start(stack, args, name) for name in names}
            pairs.append(measure_pair(urls, args))
        print(f"  pair {number + 1}: {ratios(pairs[-1])}", flush=True)
    rows = []
    for kind in ("reading", "per_token"):
        seconds = {name: [pair[name][kind] for pair in pairs] for name in programs}
        ratio = middle([a / b for a, b in zip(seconds["this"], seconds["other"])])
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append({"what": kind, **medians, **{f"ratio_{k}": v for k, v in ratio.items()}})
    return {"rows": rows, "pairs": pairs}


def measure_pair(urls, args):
    """The medians of one pair of processes."""
    figures = {name: [] for name in urls}
    text = document(args.tokens)
    # The first round warms both up and does not count.
    for number in range(1 + args.rounds):
        for name in list(urls) if number % 2 == 0 else list(urls)[::-1]:
            figure = ask(urls[name], f"Text {number}.\n{text}", args.answer_tokens)
            if number > 0:
                figures[name].append(figure)
    return {
        name: {kind: statistics.median(f[kind] for f in rounds) for kind in rounds[0]}
        for name, rounds in figures.items()
    }


def ratios(figures):
    """Both ratios of a pair as text.

    >>> one = {"reading": 2.0, "per_token": 0.1}
    >>> ratios({"this": one, "other": {"reading": 1.0, "per_token": 0.1}})
    'reading 2.000, per token 1.000'
    """
    this, other = figures["this"], figures["other"]
    reading, token = (this[kind] / other[kind] for kind in ("reading", "per_token"))
    return f"reading {reading:.3f}, per token {token:.3f}"


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", required=True, help="the program to compare with")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument(
        "--palimpsest", default=bench_peers.ROOT / "target" / "release" / "palimpsest"
    )
    parser.add_argument("--tokens", type=int, default=2048, help="length of a prompt")
    parser.add_argument("--answer-tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each pair")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ours", nargs="*", default=[], help="more options of both `serve`")
    parser.add_argument("--this-alone", nargs="*", default=[], help="and of this program alone")
    parser.add_argument("--record", type=pathlib.Path, help="JSON file for the raw figures")
    return parser.parse_args()


def main():
    args = parse_args()
    result = measure(args)
    names = list(result["rows"][0])
    shown = [
        [v if isinstance(v, str) else f"{v:.4f}" for v in row.values()] for row in result["rows"]
    ]
    print(table(names, shown))
    if args.record:
        settings = {k: v for k, v in vars(args).items() if k != "record"}
        for path in ("model", "palimpsest", "other"):
            settings[path] = pathlib.Path(settings[path]).name
        record = {"settings": settings, "machine": bench_peers.machine(), **result}
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
