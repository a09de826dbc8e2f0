#!/usr/bin/env python3
"""What a conversation about a long document costs, turn by turn, and what many questions at once
cost, beside llama.cpp's server with its prompt cache.

`turns`: one client asks about a document, ten times in one conversation. The first turn reads the
document. Shown is the time to the first token of each turn, and the tokens that the server says it
did not read.

`questions`: so many clients ask one question each about the same document, at once. Shown is the
time until the last answer, beside the time of one reading and of the same answers when the document
is known.

Run as `cargo xtask bench-turns`. Servers are started and ended here, one after the other, on a port
of loopback. llama.cpp is built by the harness of `bench-peers` (12 minutes on 2 cores, once).
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bench_peers  # noqa: E402  (it stands beside this file)

ROOT = bench_peers.ROOT
TEXT = ROOT / "assets" / "gpl-3.0.txt"
QUESTIONS = [
    "Who may copy the program?",
    "What must a copy carry?",
    "What is said of warranties?",
    "What is a covered work?",
    "When does a licence end?",
]


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds from its request."""

    first: float
    whole: float
    prompt_tokens: int
    cached_tokens: int
    text: str


def document(tokens):
    """Numbered paragraphs of about so many tokens. The number makes each one differ.

    >>> document(100).count("[1]")
    1
    >>> len(document(2000)) > 2 * len(document(800))
    True
    """
    paragraphs = [" ".join(p.split()) for p in TEXT.read_text().split("\n\n") if p.strip()]
    # SmolLM2 has about 4.4 characters of this text to a token.
    parts, size = [], 0
    while size < tokens * 4.4:
        number = len(parts) + 1
        parts.append(f"[{number}] {paragraphs[len(parts) % len(paragraphs)]}")
        size += len(parts[-1]) + 1
    return "\n".join(parts)


def chat(url, messages, max_tokens, extra=None):
    """Streams one answer of an OpenAI server."""
    body = {
        "model": model_of(url),
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(extra or {}),
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    begun = time.monotonic()
    first, text, usage = None, [], {}
    with urllib.request.urlopen(request, timeout=3600) as stream:
        for line in stream:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    first = first or time.monotonic()
                    text.append(piece)
    end = time.monotonic()
    details = usage.get("prompt_tokens_details") or {}
    return Answer(
        (first or end) - begun,
        end - begun,
        usage.get("prompt_tokens", 0),
        details.get("cached_tokens", 0),
        "".join(text),
    )


def model_of(url):
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command, port, log):
    """A server while the block runs; its URL."""
    with open(log, "wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended at once; see {log}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def peak_mib(pid):
    """Peak resident memory of a process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def ask_turns(url, args):
    """A conversation; its answers."""
    messages = [{"role": "user", "content": f"{document(args.tokens)}\n\n{QUESTIONS[0]}"}]
    answers = []
    for turn in range(args.turns):
        answer = chat(url, messages, args.answer_tokens)
        answers.append(answer)
        print(
            f"  turn {turn + 1}: first token {answer.first:.2f} s, "
            f"{answer.prompt_tokens} tokens, {answer.cached_tokens} not read",
            flush=True,
        )
        messages.append({"role": "assistant", "content": answer.text})
        messages.append({"role": "user", "content": QUESTIONS[(turn + 1) % len(QUESTIONS)]})
    return answers


def ask_at_once(url, prompts, args):
    """The answers to all prompts, and seconds until the last."""
    answers = [None] * len(prompts)

    def ask(index):
        messages = [{"role": "user", "content": prompts[index]}]
        answers[index] = chat(url, messages, args.answer_tokens)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.monotonic() - begun


def ask_questions(url, args):
    """Seconds of one reading, of all questions at once on an unknown document, and of the same
    questions when it is known."""
    read, asked = document(args.tokens), f"\n\n{{}} Answer number {{}}."
    lines = [f"Part {i}: {QUESTIONS[i % len(QUESTIONS)]}" for i in range(args.clients)]
    alone = chat(url, [{"role": "user", "content": f"Text A.\n{read}\n\n{QUESTIONS[0]}"}], 1)
    prompts = [f"Text B.\n{read}" + asked.format(line, i) for i, line in enumerate(lines)]
    answers, together = ask_at_once(url, prompts, args)
    again, known = ask_at_once(url, prompts, args)
    print(
        f"  one reading {alone.whole:.1f} s, {len(prompts)} questions {together:.1f} s, "
        f"known {known:.1f} s",
        flush=True,
    )
    cached = [statistics.median(a.cached_tokens for a in some) for some in (answers, again)]
    return {
        "reading": alone.whole,
        "together": together,
        "known": known,
        "ratio": together / (alone.whole + known),
        "cached_together": cached[0],
        "cached_known": cached[1],
        "prompt_tokens": answers[0].prompt_tokens,
    }


def engines(args):
    """Name and command of each server, for a port."""
    context = args.tokens + 8192

    def ours(port):
        return [args.palimpsest, "serve", "--model", args.model, "--threads", args.threads] + [
            "--listen", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{port}",
            "--max-running", "32", *args.ours,
        ]  # fmt: skip

    chosen = {"palimpsest": ours}
    if not args.alone:
        program = bench_peers.build_llama_cpp(args.jobs) / "llama-server"
        # One slot for the conversation; as many as there are clients share one cache of the
        # document for the questions.
        slots = args.clients if args.kind == "questions" else 1
        unified = ["--kv-unified"] if args.kind == "questions" else []

        def theirs(port):
            return [program, "-m", args.model, "-t", args.threads, "-c", context, "-np", slots] + [
                "--host", "127.0.0.1", "--port", port, "--no-webui", *unified,
                # It refuses prompts beyond the trained length, which this model's document is.
                "--override-kv", f"llama.context_length=int:{context}",
            ]  # fmt: skip

        chosen["llama.cpp"] = theirs
    return chosen


def table(header, rows):
    """Markdown.

    >>> print(table(["a", "b"], [[1, 2]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    show = [" | ".join(str(cell) for cell in line) for line in lines]
    framed = [f"|{line.replace(' ', '')}|" if "---" in line else f"| {line} |" for line in show]
    return "\n".join(framed)


def report(kind, results):
    names = list(results)
    if kind == "turns":
        turns = range(len(results[names[0]]["answers"]))
        rows = []
        for turn in turns:
            cells = [f"{results[name]['answers'][turn]['first']:.2f}" for name in names]
            cells += [results[name]["answers"][turn]["cached_tokens"] for name in names]
            rows.append([turn + 1, *cells])
        header = ["turn", *[f"{n}, s" for n in names], *[f"{n}, not read" for n in names]]
        return table(header, rows)
    keys = ["reading", "together", "known", "ratio", "cached_together", "cached_known"]
    rows = [[key, *[f"{results[name][key]:.2f}" for name in names]] for key in keys]
    return table(["", *names], rows)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["turns", "questions"])
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--palimpsest", default=ROOT / "target" / "release" / "palimpsest")
    parser.add_argument("--tokens", type=int, default=30_000, help="tokens of the document")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--alone", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--ours", nargs="*", default=[], help="more options of `serve`")
    parser.add_argument("--record", type=pathlib.Path, help="JSON file for the raw figures")
    return parser.parse_args()


def main():
    args = parse_args()
    results = {}
    for name, command in engines(args).items():
        port = free_port()
        log = bench_peers.PEERS / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}:", flush=True)
        with server(command(port), port, log) as (url, pid):
            if args.kind == "turns":
                answers = ask_turns(url, args)
                results[name] = {"answers": [asdict(answer) for answer in answers]}
            else:
                results[name] = ask_questions(url, args)
            results[name]["peak_mib"] = peak_mib(pid)
    print(f"\n{report(args.kind, results)}")
    for name, result in results.items():
        print(f"{name}: peak {result['peak_mib']:.0f} MiB")
    if args.record:
        settings = {k: v for k, v in vars(args).items() if k != "record"}
        for program_or_file in ("model", "palimpsest"):
            settings[program_or_file] = pathlib.Path(settings[program_or_file]).name
        record = {"settings": settings, "machine": bench_peers.machine(), "results": results}
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
