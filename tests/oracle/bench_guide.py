#!/usr/bin/env python3
"""What a guide costs, and what the log-probabilities of a prompt cost.

`decode`: the same number of tokens is written with a schema and without one, in turns, by so many
clients at once. Shown are tokens per second of one answer between its first token and its last, and
the ratio of both within a round.

`first-mask`: a short question is asked with a schema of so many bytes and without one, in turns.
Shown is the time to the first token of each, and their difference: what it takes until the first
mask is there. Every schema is new to the service.

`echo`: a prompt of so many tokens is read, without any answer, and another one is read with the
log-probability of each of its tokens, in turns. Shown are the times and their ratio within a round.

All three run where none is named. Run as `cargo xtask bench-guide`. The server is started and ended
here, on a port of loopback.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bench_peers  # noqa: E402  (it stands beside this file)
from bench_turns import document, free_port, server, table  # noqa: E402

KINDS = ["decode", "first-mask", "echo"]
# What each figure should not pass.
LIMITS = {"decode": 1.05, "first-mask": 50.0, "echo": 1.15}

# An answer to it is longer than any that is asked for.
LONG = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "kind", "count", "tags"],
        "properties": {
            "name": {"type": "string", "minLength": 20, "maxLength": 60},
            "kind": {"enum": ["plant", "animal", "stone", None]},
            "count": {"type": "integer", "minimum": 0, "maximum": 100000},
            "tags": {"type": "array", "maxItems": 4, "items": {"type": "string", "maxLength": 16}},
        },
    },
}


@dataclass(frozen=True)
class Stream:
    """One streamed answer, in seconds from its request."""

    first: float
    last: float
    tokens: int

    def speed(self):
        """Tokens per second behind the first.

        >>> Stream(1.0, 3.0, 21).speed()
        10.0
        """
        return (self.tokens - 1) / (self.last - self.first)


def schema_of(size, name):
    """A schema of an object in about `size` bytes, whose properties begin with `name`.

    >>> 10_000 <= len(json.dumps(schema_of(10_000, "a"))) < 10_400
    True
    >>> schema_of(500, "a") == schema_of(500, "b")
    False
    """
    kinds = [
        {"type": "string", "minLength": 1, "maxLength": 40},
        {"type": "integer", "minimum": -1000, "maximum": 100_000},
        {"enum": ["one", "two", "three", 4, None]},
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 8},
        {"type": "string", "pattern": "^[a-z]{2,8}(-[0-9]{1,4})?$"},
        {"anyOf": [{"type": "boolean"}, {"type": "string", "format": "date"}]},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["street", "city"],
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        },
    ]
    properties = {}
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    while len(json.dumps(schema)) < size:
        number = len(properties)
        properties[f"{name}_{number}"] = kinds[number % len(kinds)]
        schema["required"] = list(properties)
    return schema


def post(url, body):
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=3600)


def stream(url, body):
    """A streamed answer."""
    begun = time.monotonic()
    first = last = None
    tokens = 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with post(url, {**body, **options}) as lines:
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices"):
                last = time.monotonic()
                first = first or last
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return Stream(first - begun, last - begun, tokens)


def at_once(url, bodies):
    """The answers to all, asked at once."""
    answers = [None] * len(bodies)

    def ask(index):
        answers[index] = stream(url, bodies[index])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in answers:
        raise RuntimeError("an answer failed; the log of the server says why")
    return answers


def with_schema(schema):
    return {"structured_outputs": {"json": schema}}


def measure_decode(url, args, turn):
    """Tokens per second of one answer, without a schema and with one."""
    body = {"max_tokens": args.answer_tokens, "temperature": 1}
    speeds = []
    for guide in ({"ignore_eos": True}, with_schema(LONG)):
        asked = [
            {**body, "seed": turn * 100 + client, "prompt": f"Inventory {client}:", **guide}
            for client in range(args.clients)
        ]
        answers = at_once(url, asked)
        short = [answer.tokens for answer in answers if answer.tokens < args.answer_tokens]
        if short:
            raise RuntimeError(f"answers of {short} tokens: the comparison needs as many of each")
        speeds.append(statistics.median(answer.speed() for answer in answers))
    return speeds


def measure_first_mask(url, args, turn):
    """Milliseconds until the first token, without a schema and with one."""
    body = {"max_tokens": 2, "temperature": 0, "prompt": "In JSON:"}
    schema = schema_of(args.schema_bytes, f"field{turn}")
    free, guided = stream(url, body), stream(url, {**body, **with_schema(schema)})
    return [1000 * free.first, 1000 * guided.first]


def measure_echo(url, args, turn):
    """Seconds to read a prompt, without log-probabilities and with them."""
    seconds = []
    for more in ({}, {"echo": True, "logprobs": args.logprobs}):
        # No text begins like another, so nothing that is kept helps.
        prompt = f"Text {turn} {len(more)} of {os.getpid()}.\n{document(args.tokens)}"
        body = {"prompt": prompt, "max_tokens": 0, "temperature": 0, **more}
        begun = time.monotonic()
        with post(url, body) as answer:
            read = json.load(answer)
        seconds.append(time.monotonic() - begun)
        told = (read["choices"][0].get("logprobs") or {}).get("token_logprobs") or []
        tokens = read["usage"]["prompt_tokens"]
        if more and len(told) != tokens:
            raise RuntimeError(f"{len(told)} log-probabilities of {tokens} tokens")
    return seconds


def summary(kind, rounds):
    """The median of each side and of what is compared: a ratio of the slower to the faster, or a
    difference.

    >>> summary("echo", [[10.0, 11.0], [10.0, 12.0], [20.0, 20.0]])
    [10.0, 12.0, 1.1]
    >>> summary("decode", [[50.0, 40.0]])
    [50.0, 40.0, 1.25]
    >>> summary("first-mask", [[30.0, 70.0]])
    [30.0, 70.0, 40.0]
    """
    compare = {
        "decode": lambda free, guided: free / guided,
        "first-mask": lambda free, guided: guided - free,
        "echo": lambda plain, told: told / plain,
    }[kind]
    sides = [statistics.median(side) for side in zip(*rounds)]
    return [*sides, statistics.median(compare(*one) for one in rounds)]


MEASURE = {"decode": measure_decode, "first-mask": measure_first_mask, "echo": measure_echo}
UNITS = {"decode": "tokens/s", "first-mask": "ms", "echo": "s"}


def report(results):
    """Markdown.

    >>> print(report({"echo": [[10.0, 11.0]]}))
    | | without | with | compared | limit |
    |---|---|---|---|---|
    | echo, s | 10.00 | 11.00 | 1.10 | 1.15 |
    """
    rows = []
    for kind, rounds in results.items():
        cells = [f"{value:.2f}" for value in summary(kind, rounds)]
        rows.append([f"{kind}, {UNITS[kind]}", *cells, LIMITS[kind]])
    return table(["", "without", "with", "compared", "limit"], rows).replace("|  |", "| |", 1)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS) + "; default all")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--palimpsest", default=bench_peers.ROOT / "target/release/palimpsest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=1, help="answers at once, for decode")
    parser.add_argument("--answer-tokens", type=int, default=400)
    parser.add_argument("--schema-bytes", type=int, default=10_240)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the prompt of echo")
    parser.add_argument("--logprobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ours", nargs="*", default=[], help="more options of `serve`")
    parser.add_argument("--record", type=pathlib.Path, help="JSON file for the raw figures")
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(KINDS)}")
    args.kinds = args.kinds or KINDS
    return args


def main():
    args = parse_args()
    port, results = free_port(), {}
    command = [args.palimpsest, "serve", "--model", args.model, "--threads", args.threads] + [
        "--listen", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{port}", *args.ours,
    ]  # fmt: skip
    log = bench_peers.PEERS / "guide.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with server(command, port, log) as (url, _):
        # What is made once for the first guide of a service is no part of a figure.
        stream(url, {"prompt": "a", "max_tokens": 2, **with_schema(LONG)})
        for kind in args.kinds:
            results[kind] = []
            for turn in range(args.rounds):
                one = MEASURE[kind](url, args, turn)
                results[kind].append(one)
                print(f"{kind} {turn + 1}: {one[0]:.2f} {one[1]:.2f} {UNITS[kind]}", flush=True)
    print(f"\n{report(results)}")
    if args.record:
        settings = {k: v for k, v in vars(args).items() if k != "record"}
        for program_or_file in ("model", "palimpsest"):
            settings[program_or_file] = pathlib.Path(settings[program_or_file]).name
        record = {"settings": settings, "machine": bench_peers.machine(), "results": results}
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
