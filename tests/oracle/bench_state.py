#!/usr/bin/env python3
"""What keeping a state costs, and what reading one text does to the answers of others.

`gaps`: one client's answer streams while another client's prompt is read. Shown are the gaps
between tokens before and during the reading, and the time of the reading beside and without the
answer.

`suspend`: a session of so many tokens leaves memory and comes back. Shown are the times, the bytes,
and the time that reading it took.

`fork`: a session of so many tokens is copied, and the copy is asked a question. Shown are the time
of a copy and of its first token, and the time that reading took. With more tokens a record is
longer, and the state is not: what both cost is to be seen in one run.

`soak`: many sessions over one long document are asked at random, by several clients at once, while
the service is killed and started again. Each session's story is then told to a second service that
was never killed and has no store, and must have the same answers. Nothing that was acknowledged may
be missing. Without `--model` a tiny model of random weights answers, whose tokens are bytes: what
is tried is the service.

Run as `cargo xtask bench-state`. Servers are started and ended here, on ports of loopback.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bench_peers  # noqa: E402  (it stands beside this file)
from bench_turns import QUESTIONS, document, free_port, peak_mib, server, table  # noqa: E402

# A shape that answers in a millisecond.
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 65536, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

LOST = (urllib.error.URLError, ConnectionError, http.client.HTTPException, TimeoutError)


def call(url, path, body=None, method=None):
    """The JSON that a route answers with."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}{path}", data, {"content-type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return json.load(answer)


def command(args, port, *more):
    """`serve` on a port."""
    return [args.palimpsest, "serve", "--model", args.model, "--threads", args.threads] + [
        "--listen", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{port}", *more, *args.ours,
    ]  # fmt: skip


def log_file(name):
    path = bench_peers.PEERS / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Stream(threading.Thread):
    """An answer that goes on until it is stopped; when its tokens came."""

    def __init__(self, url, prompt):
        super().__init__(daemon=True)
        self.times, self.url, self.prompt, self.ended = [], url, prompt, False

    def run(self):
        body = {
            "prompt": self.prompt, "max_tokens": 6000, "temperature": 0, "stream": True,
            "ignore_eos": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=3600) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    self.times.append(time.monotonic())
                if self.ended:
                    return

    def gaps(self, begin, end):
        """Seconds between the tokens that came within a time."""
        times = [moment for moment in self.times if begin <= moment <= end]
        return [after - before for before, after in zip(times, times[1:])]


def read_prompt(url, prompt):
    """Seconds until a prompt was read and its first token was there."""
    begun = time.monotonic()
    call(url, "/v1/completions", {"prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - begun


def measure_gaps(args):
    """One row for each round."""
    rounds = []
    port = free_port()
    with server(command(args, port), port, log_file("gaps")) as (url, _):
        for turn in range(args.rounds):
            text = document(args.tokens[0])
            alone = read_prompt(url, f"Text {turn} alone.\n{text}")
            stream = Stream(url, f"Story number {turn}. Once upon a time")
            stream.start()
            while len(stream.times) < 8:
                time.sleep(0.05)
            begin = time.monotonic()
            time.sleep(args.seconds)
            middle = time.monotonic()
            beside = read_prompt(url, f"Text {turn} beside.\n{text}")
            end = time.monotonic()
            stream.ended = True
            stream.join()
            calm, busy = stream.gaps(begin, middle), stream.gaps(middle, end)
            row = {
                "calm": statistics.median(calm),
                "busy": statistics.median(busy),
                "busy_p99": sorted(busy)[int(0.99 * (len(busy) - 1))],
                "alone": alone,
                "beside": beside,
            }
            row["gap_ratio"] = row["busy"] / row["calm"]
            row["reading_ratio"] = beside / alone
            rounds.append(row)
            print(f"  round {turn + 1}: {show(row)}", flush=True)
    return rounds


def show(row):
    """A row as text.

    >>> show({"calm": 0.0251, "ratio": 2.0})
    'calm 0.025, ratio 2.000'
    """
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items())


def measure_suspend(args):
    """One row for each length. All sessions are moved in turn, so that what else the machine does
    meets all alike."""
    longest = max(args.tokens)
    with tempfile.TemporaryDirectory() as place:
        port = free_port()
        stores = ["--session-store", f"{place}/sessions", "--snapshot-store", f"{place}/states"]
        more = [*stores, "--session-max-tokens", 2 * longest + 8192]
        with server(command(args, port, *more), port, log_file("suspend")) as (url, _):
            rows = [read_session(url, tokens) for tokens in args.tokens]
            for _ in range(args.rounds):
                for row in rows:
                    move_session(url, row)
            for row in rows:
                ask_session(url, row)
    for row in rows:
        del row["name"]
        row["suspend"] = statistics.median(row["suspend"])
        row["resume"] = statistics.median(row["resume"])
        row["resume_of_reading"] = row["resume"] / row["reading"]
    for row in rows:
        row["resume_of_first_row"] = row["resume"] / rows[0]["resume"]
    return rows


def read_session(url, tokens):
    """A session of so many tokens, which has left memory once and is there again."""
    name = f"of-{tokens}"
    call(url, "/v1/sessions", {"session_id": name, "ttl_seconds": 86400})
    body = {"text": document(tokens)}
    session, reading = timed(lambda: call(url, f"/v1/sessions/{name}/append", body))
    # The first move waits until what the append left is written; later ones find it in the store.
    _, writing = timed(lambda: call(url, f"/v1/sessions/{name}/suspend", {}))
    call(url, f"/v1/sessions/{name}/resume", {})
    row = {
        "name": name, "tokens": session["tokens"], "reading": reading, "first_suspend": writing,
        "suspend": [], "resume": [],
    }  # fmt: skip
    print(f"  {session['tokens']} tokens: read in {reading:.2f} s", flush=True)
    return row


def move_session(url, row):
    """Out of memory and back."""
    gone, seconds = timed(lambda: call(url, f"/v1/sessions/{row['name']}/suspend", {}))
    row["suspend"].append(seconds)
    back, seconds = timed(lambda: call(url, f"/v1/sessions/{row['name']}/resume", {}))
    row["resume"].append(seconds)
    row["moved_bytes"] = back["moved_bytes"]
    assert gone["moved_bytes"] == back["moved_bytes"] > 0, "the state leaves and comes back"


def ask_session(url, row):
    """A question on it, after all."""
    ask = {"session_id": row["name"], "prompt": "\n\nQuestion:", "max_tokens": 1}
    answer, row["first_token"] = timed(lambda: call(url, "/v1/completions", ask))
    usage = answer["usage"]
    row["held_bytes"] = usage["kv"]["held_bytes"]
    row["not_read"] = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def measure_fork(args):
    """One row for each length. All sessions are copied in turn, so that what else the machine does
    meets all alike."""
    port = free_port()
    more = ["--session-max-tokens", 2 * max(args.tokens) + 8192]
    with (
        tempfile.TemporaryDirectory() as place,
        server(
            command(args, port, "--session-store", f"{place}/sessions", *more),
            port,
            log_file("fork"),
        ) as (url, _),
    ):
        rows = [read_original(url, tokens) for tokens in args.tokens]
        for turn in range(args.rounds):
            for row in rows:
                fork_session(url, row, turn)
    for row in rows:
        del row["name"]
        for what in ("fork", "first_token"):
            row[what] = statistics.median(row[what])
        row["fork_of_reading"] = (row["fork"] + row["first_token"]) / row["reading"]
    for row in rows:
        row["fork_of_first_row"] = row["fork"] / rows[0]["fork"]
    return rows


def read_original(url, tokens):
    """A session of so many tokens."""
    name = f"of-{tokens}"
    call(url, "/v1/sessions", {"session_id": name, "ttl_seconds": 86400})
    body = {"text": document(tokens)}
    session, reading = timed(lambda: call(url, f"/v1/sessions/{name}/append", body))
    print(f"  {session['tokens']} tokens: read in {reading:.2f} s", flush=True)
    return {
        "name": name, "tokens": session["tokens"], "reading": reading,
        "record_bytes": session["record_bytes"], "fork": [], "first_token": [],
    }  # fmt: skip


def fork_session(url, row, turn):
    """A copy, its answer to a question, and its end."""
    copy = f"{row['name']}-{turn}"
    _, seconds = timed(lambda: call(url, f"/v1/sessions/{row['name']}/fork", {"session_id": copy}))
    row["fork"].append(seconds)
    ask = {"session_id": copy, "prompt": f"\n\nQuestion {turn}:", "max_tokens": 1}
    answer, seconds = timed(lambda: call(url, "/v1/completions", ask))
    row["first_token"].append(seconds)
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    row["read_again"] = usage["prompt_tokens"] - cached
    call(url, f"/v1/sessions/{copy}", method="DELETE")


def timed(act):
    begun = time.monotonic()
    return act(), time.monotonic() - begun


@dataclass
class Session:
    """What a client knows of a session."""

    name: str
    opening: str
    tokens: int = 0
    told: int = 0
    # Question and answer; the answer is None where the service was killed before it came.
    turns: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Tally:
    """What the clients saw."""

    turns: int = 0
    cut_off: int = 0
    cut_off_but_kept: int = 0
    read_again: int = 0
    faults: list = field(default_factory=list)


class Service:
    """A `serve` that can be killed and started again at the same port."""

    def __init__(self, args, *more):
        self.port = free_port()
        self.words = [str(word) for word in command(args, self.port, *more)]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process, self.up, self.log = None, threading.Event(), log_file("soak")

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.words, stdout=out, stderr=out)
        for _ in range(3000):
            if self.process.poll() is not None:
                raise RuntimeError(f"serve ended; see {self.log}")
            with contextlib.suppress(*LOST):
                call(self.url, "/v1/models")
                self.up.set()
                return
            time.sleep(0.1)
        raise RuntimeError("serve does not answer")

    def kill(self):
        self.up.clear()
        self.process.kill()
        self.process.wait()


def opening_of(index):
    """Some 300 tokens that no other session has, so that each has a state of its own."""
    chance = random.Random(index)
    words = [chance.choice("north south east west red green blue old new far".split()) for _ in
             range(280)]  # fmt: skip
    return f"\n\nFile {index}. " + " ".join(words) + ".\n"


def question_of(session):
    number = len(session.turns) + 1
    return f"\nQuestion {number}: {QUESTIONS[number % len(QUESTIONS)]}\nAnswer:"


def ask(url, name, question):
    body = {"session_id": name, "prompt": question, "max_tokens": 4, "temperature": 0}
    answer = call(url, "/v1/completions", body)
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return answer["choices"][0]["text"], usage["prompt_tokens"], cached


def one_turn(service, session, tally, lock):
    """One question; what is known of the session afterwards is what the service must hold."""
    question = question_of(session)
    try:
        text, prompt, cached = ask(service.url, session.name, question)
    except urllib.error.HTTPError as error:
        with lock:
            tally.faults.append(f"{session.name}: {error.code} {error.read()[:200]!r}")
        return
    except LOST:
        service.up.wait()
        held = call(service.url, f"/v1/sessions/{session.name}")["tokens"]
        with lock:
            tally.cut_off += 1
            if held != session.tokens:
                tally.cut_off_but_kept += 1
        if held != session.tokens:
            session.turns.append((question, None))
            session.tokens = held
        return
    held = call_again(service, f"/v1/sessions/{session.name}")["tokens"]
    with lock:
        tally.turns += 1
        # A state ends at a stride; what is behind it is read again.
        if prompt - cached > 1024:
            tally.read_again += 1
        if held < prompt:
            tally.faults.append(f"{session.name}: holds {held} tokens, {prompt} were acknowledged")
    session.turns.append((question, text))
    session.tokens = held


def call_again(service, path):
    """A question without effects, asked until it is answered."""
    while True:
        service.up.wait()
        with contextlib.suppress(*LOST):
            return call(service.url, path)
        time.sleep(0.1)


def soak_document(args):
    """A text of about so many tokens, which are bytes for the tiny model."""
    if args.model.startswith("random:"):
        return document(args.tokens[0] / 4.4)[: args.tokens[0]]
    return document(args.tokens[0])


def make_sessions(url, args):
    call(url, "/v1/sessions", {"session_id": "base", "ttl_seconds": 86400})
    base = call(url, "/v1/sessions/base/append", {"text": soak_document(args)})
    print(f"  the document has {base['tokens']} tokens", flush=True)
    sessions = []
    for index in range(args.sessions):
        session = Session(f"s{index}", opening_of(index))
        call(url, "/v1/sessions/base/fork", {"session_id": session.name})
        done = call(url, f"/v1/sessions/{session.name}/append", {"text": session.opening})
        session.tokens = done["tokens"]
        sessions.append(session)
        if (index + 1) % 100 == 0:
            print(f"  {index + 1} sessions", flush=True)
    return sessions


def play(service, sessions, args):
    """Random questions by all clients, with kills between."""
    tally, lock, left = Tally(), threading.Lock(), [args.resumes]

    def client(seed):
        chance = random.Random(seed)
        while True:
            with lock:
                if left[0] <= 0:
                    return
                left[0] -= 1
            session = chance.choice(sessions)
            with session.lock:
                service.up.wait()
                one_turn(service, session, tally, lock)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(args.clients)]
    for thread in clients:
        thread.start()
    kills = 0
    while any(thread.is_alive() for thread in clients):
        time.sleep(0.5)
        due = (args.resumes - left[0]) * (args.kills + 1) // args.resumes
        if kills < min(due, args.kills):
            kills += 1
            service.kill()
            service.start()
            print(
                f"  killed {kills} times, {args.resumes - left[0]} questions, "
                f"{len(tally.faults)} faults",
                flush=True,
            )
    return tally


def compare(sessions, args):
    """Tells some stories to a service that was never killed; where its answers differ."""
    different = []
    chosen = random.Random(7).sample(sessions, min(args.stories, len(sessions)))
    length = str(4 * args.tokens[0])
    service = Service(args, "--snapshot-memory-mib", "4096", "--session-max-tokens", length)
    service.start()
    try:
        call(service.url, "/v1/sessions", {"session_id": "base"})
        call(service.url, "/v1/sessions/base/append", {"text": soak_document(args)})
        for session in chosen:
            name = session.name
            call(service.url, "/v1/sessions/base/fork", {"session_id": name})
            call(service.url, f"/v1/sessions/{name}/append", {"text": session.opening})
            for question, answer in session.turns:
                text, _, _ = ask(service.url, name, question)
                if answer is not None and text != answer:
                    different.append(f"{name}: {question!r} had another answer")
            held = call(service.url, f"/v1/sessions/{name}")["tokens"]
            if held != session.tokens:
                different.append(f"{name}: {session.tokens} tokens, {held} when told anew")
            call(service.url, f"/v1/sessions/{name}", method="DELETE")
    finally:
        service.kill()
    return different


def soak(args):
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        if not args.model:
            shape = pathlib.Path(place, "tiny")
            shape.mkdir()
            (shape / "config.json").write_text(json.dumps(TINY))
            args.model = f"random:{shape}"
        service = Service(
            args,
            "--session-store", f"{place}/sessions", "--snapshot-store", f"{place}/states",
            "--snapshot-store-mib", "60000", "--snapshot-memory-mib", "2048",
            "--session-max-tokens", str(4 * args.tokens[0]),
        )  # fmt: skip
        service.start()
        try:
            sessions, making = timed(lambda: make_sessions(service.url, args))
            tally, playing = timed(lambda: play(service, sessions, args))
            peak = peak_mib(service.process.pid)
            bytes_of_states = sum(
                file.stat().st_size for file in pathlib.Path(place, "states").rglob("*.safetensors")
            )
        finally:
            service.kill()
        different = compare(sessions, args)
    result = {
        **asdict(tally),
        "making": making,
        "playing": playing,
        "state_bytes_per_session": bytes_of_states / (len(sessions) + 1),
        "peak_mib": peak,
        "stories": min(args.stories, len(sessions)),
        "different": different,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if tally.faults or different:
        raise SystemExit("something that was acknowledged is missing or another")
    return result


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["gaps", "suspend", "fork", "soak"])
    parser.add_argument("--model", help="GGUF file; `soak` can do without")
    parser.add_argument(
        "--palimpsest", default=bench_peers.ROOT / "target" / "release" / "palimpsest"
    )
    parser.add_argument("--tokens", type=int, nargs="*", help="lengths of the documents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="undisturbed part of a round")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--resumes", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--stories", type=int, default=50, help="sessions that are told anew")
    parser.add_argument("--place", help="folder for the stores")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ours", nargs="*", default=[], help="more options of `serve`")
    parser.add_argument("--record", type=pathlib.Path, help="JSON file for the raw figures")
    args = parser.parse_args()
    lengths = {
        "gaps": [8192], "suspend": [4096, 65536, 262144], "fork": [4096, 32768], "soak": [32768],
    }  # fmt: skip
    args.tokens = args.tokens or lengths[args.kind]
    if args.kind != "soak" and not args.model:
        parser.error("--model is needed")
    return args


def main():
    args = parse_args()
    kinds = {
        "gaps": measure_gaps, "suspend": measure_suspend, "fork": measure_fork, "soak": soak,
    }  # fmt: skip
    print(f"{args.kind}:", flush=True)
    results = kinds[args.kind](args)
    if args.kind != "soak":
        names = list(results[0])
        print(table(names, [[f"{row[name]:.3f}" for name in names] for row in results]))
    if args.record:
        settings = {k: v for k, v in vars(args).items() if k not in ("record", "place")}
        for program_or_file in ("model", "palimpsest"):
            settings[program_or_file] = pathlib.Path(settings[program_or_file]).name
        record = {"settings": settings, "machine": bench_peers.machine(), "results": results}
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
