#!/usr/bin/env python3
"""Speed and peak memory against llama.cpp and PyTorch, on one machine, in one run.

Engines alternate: each round measures every engine once at each depth, so that what else the
machine does meets them all alike. Each measurement is a process of its own, whose peak memory the
kernel reports when it ends. Ratios are taken within a round and their median is shown; speeds are
medians over the rounds.

Run as `cargo xtask bench-peers`. llama.cpp is built from PyPI's llama-cpp-python source package,
with pip's own cmake and ninja, natively for this processor; that takes about 12 minutes on 2 cores,
once.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import defaultdict
from dataclasses import asdict, dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "target" / "peers"
REQUIREMENTS = ROOT / "xtask" / "requirements"
LLAMA_PROGRAMS = ["llama-bench", "llama-quantize", "llama-perplexity", "llama-server"]
LLAMA_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
]
LLAMA_OPTIONS += [
    f"-DLLAMA_{part}=OFF"
    for part in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "USE_PREBUILT_UI", "BUILD_APP")
]
BEGIN, END = "<!-- bench-peers: begin -->", "<!-- bench-peers: end -->"
# Above this depth a warm-up run would only double the time.
MAX_WARMUP_DEPTH = 4096


@dataclass(frozen=True)
class Measurement:
    """One process: `kind` is prefill or decode, `depth` the tokens before (decode) or during
    (prefill) the timing."""

    round: int
    engine: str
    kind: str
    depth: int
    tokens_per_second: float
    peak_rss_bytes: int
    note: str = ""


class EngineError(RuntimeError):
    """An engine failed, ran past the limit, or printed no figure."""


# --- building the peers ---------------------------------------------------------------------------


def build_llama_cpp(jobs):
    """Builds llama.cpp's programs unless they are there, and returns their folder."""
    programs = PEERS / "build" / "bin"
    if all((programs / name).is_file() for name in LLAMA_PROGRAMS):
        return programs
    tools, source = PEERS / "tools", PEERS / "src"
    PEERS.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    pip += ["--only-binary", ":all:", "--upgrade", "--target", tools]
    call([*pip, "--requirement", REQUIREMENTS / "build-tools.txt"])
    path = os.pathsep.join([str(tools / "bin"), os.environ.get("PATH", "")])
    env = {**os.environ, "PYTHONPATH": str(tools), "PATH": path}
    if not (source / "vendor" / "llama.cpp" / "CMakeLists.txt").is_file():
        unpack_source(source, env)
    call(
        [
            "cmake",
            "-S",
            source / "vendor" / "llama.cpp",
            "-B",
            PEERS / "build",
            "-G",
            "Ninja",
            *LLAMA_OPTIONS,
        ],
        env=env,
    )
    call(["ninja", "-C", PEERS / "build", f"-j{jobs}", *LLAMA_PROGRAMS], env=env)
    return programs


def unpack_source(target, env):
    """Downloads the source package through pip and unpacks it into `target`. pip asks its build
    system for its name: the one in `env`, whose hash is known, and not one that it would fetch."""
    with tempfile.TemporaryDirectory(dir=PEERS) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        pip += ["--no-build-isolation", "--no-binary", ":all:", "--dest", scratch]
        call([*pip, "--requirement", REQUIREMENTS / "llama.txt"], env=env)
        (archive,) = pathlib.Path(scratch).glob("*.tar.gz")
        call(["tar", "-xzf", archive, "-C", scratch])
        (folder,) = (path for path in pathlib.Path(scratch).iterdir() if path.is_dir())
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def converted_models(programs, model, types, threads):
    """Copies of `model` in other number types, made by llama-quantize: {type: path}. `as-is` is the
    file itself."""
    paths = {}
    for kind in types:
        path = pathlib.Path(model)
        if kind != "as-is":
            path = PEERS / "models" / f"{path.stem}.{kind}.gguf"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                partial = path.with_suffix(".partial")
                call([
                    programs / "llama-quantize",
                    "--allow-requantize",
                    model,
                    partial,
                    kind,
                    threads,
                ])
                partial.rename(path)
        paths[kind] = path
    return paths


def call(command, env=None):
    """Runs a command of the set-up and stops on failure."""
    command = [str(word) for word in command]
    print("==>", " ".join(command), flush=True)
    subprocess.run(command, check=True, env=env)


# --- measuring ------------------------------------------------------------------------------------


def measure(command, limit_seconds):
    """Runs `command` to its end; returns its stdout and its peak resident memory in bytes
    (getrusage's maximum)."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=out, stderr=err, stdin=subprocess.DEVNULL
        )
        late = threading.Event()

        def stop():
            late.set()
            os.kill(
                process.pid, signal.SIGKILL
            )  # Popen.kill would collect the status that wait4 is waiting for

        timer = threading.Timer(limit_seconds, stop)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            err.seek(0)
            last_line = ([""] + err.read().strip().splitlines())[-1][:300]
            reason = f"exit status {process.returncode}: {last_line}"
            if late.is_set():
                reason = f"took more than {limit_seconds:g} s"
            raise EngineError(f"{pathlib.Path(str(command[0])).name}: {reason}")
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


class Palimpsest:
    """Ours, at one KV budget."""

    def __init__(self, args, budget):
        self.name, self.budget, self.args = f"palimpsest {budget}", budget, args

    def run(self, kind, depth):
        args = self.args
        command = [args.palimpsest, "bench", kind, "--model", args.model, "--depths", depth]
        command += ["--policy", "full"] if self.budget == "full" else ["--kv-budget", self.budget]
        command += ["--tokens", args.decode_tokens, "--threads", args.threads, "--json"]
        stdout, peak = measure(command, args.limit)
        for line in stdout.splitlines():
            row = json.loads(line) if line.startswith("{") else {}
            if row.get("kind") == kind and row.get("depth") == depth:
                return row["tokens_per_second"], peak, ""
        raise EngineError(f"palimpsest printed no {kind} figure for depth {depth}")


class LlamaCpp:
    """llama.cpp's own benchmark on one file."""

    def __init__(self, args, programs, kind, path):
        label = "Q4_1" if kind == "as-is" and "Q4_1" in path.name else kind
        self.name, self.path, self.args, self.program = (
            f"llama.cpp {label}",
            path,
            args,
            programs / "llama-bench",
        )

    def run(self, kind, depth):
        args = self.args
        command = [self.program, "-m", self.path, "-t", args.threads, "-r", 1, "-o", "json"]
        command += (
            ["-p", depth, "-n", 0]
            if kind == "prefill"
            else ["-p", 0, "-n", args.decode_tokens, "-d", depth]
        )
        if depth > MAX_WARMUP_DEPTH:
            command.append("--no-warmup")
        stdout, peak = measure(command, args.limit)
        (row,) = json.loads(stdout)
        return row["avg_ts"], peak, f"llama.cpp {row['build_commit']}"


class Torch:
    """transformers on PyTorch in float32, in another Python."""

    name = "PyTorch f32"

    def __init__(self, args):
        self.args = args

    def run(self, kind, depth):
        args = self.args
        script = pathlib.Path(__file__).with_name("bench_torch.py")
        command = [
            args.torch_python,
            script,
            kind,
            args.model,
            depth,
            args.threads,
            args.decode_tokens,
        ]
        stdout, peak = measure(command, args.limit)
        row = json.loads(stdout.splitlines()[-1])
        return (
            row["tokens_per_second"],
            peak,
            f"torch {row['torch']}, transformers {row['transformers']}",
        )


def run_rounds(engines, args, log):
    """Measures every engine at every depth in every round. An engine that fails at a depth is not
    tried there again."""
    results, failed = [], {}
    for number in range(args.rounds):
        for kind in args.kinds:
            for depth in args.depths:
                for engine in engines:
                    if (engine.name, kind, depth) in failed:
                        continue
                    try:
                        speed, peak, note = engine.run(kind, depth)
                    except EngineError as error:
                        failed[engine.name, kind, depth] = str(error)
                        print(f"FAILED {engine.name} {kind} {depth}: {error}", flush=True)
                        continue
                    row = Measurement(number, engine.name, kind, depth, speed, peak, note)
                    print(
                        f"round {number} {kind} {depth:>6} {engine.name:<20} "
                        f"{speed:9.1f} tok/s {peak / 1e6:8.0f} MB",
                        flush=True,
                    )
                    log.write(json.dumps(asdict(row)) + "\n")
                    log.flush()
                    results.append(row)
    return results, failed


# --- reporting ------------------------------------------------------------------------------------


def median_ratio(ours, theirs):
    """Median over the rounds both have of ours / theirs; each is {round: tokens per second}.

    >>> median_ratio({0: 10.0, 1: 30.0, 2: 8.0}, {0: 5.0, 1: 10.0, 2: 8.0})
    2.0
    >>> median_ratio({0: 10.0}, {1: 5.0}) is None
    True
    """
    ratios = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
    return statistics.median(ratios) if ratios else None


def table(header, rows):
    """A Markdown table; `None` is shown as a dash.

    >>> print(table(["a", "b"], [["1", None]]))
    | a | b |
    |---|---|
    | 1 | - |
    """
    lines = [header, ["---"] * len(header), *rows]
    text = [
        "| " + " | ".join("-" if cell is None else cell for cell in line) + " |" for line in lines
    ]
    text[1] = text[1].replace(" ", "")
    return "\n".join(text)


def kind_section(kind, results):
    """Speed, peak memory and ratio tables of one kind."""
    by_cell, speeds = defaultdict(list), defaultdict(dict)
    for row in results:
        by_cell[row.engine, row.depth].append(row)
        speeds[row.engine, row.depth][row.round] = row.tokens_per_second
    engines = list(dict.fromkeys(row.engine for row in results))
    depths = sorted({row.depth for row in results})
    ours = [name for name in engines if name.startswith("palimpsest")]
    peers = [name for name in engines if name not in ours]

    def medians(field, scale, digits):
        def cell(engine, depth):
            values = [getattr(row, field) * scale for row in by_cell.get((engine, depth), [])]
            return f"{statistics.median(values):.{digits}f}" if values else None

        return [[str(depth), *(cell(engine, depth) for engine in engines)] for depth in depths]

    def ratio(mine, peer, depth):
        value = median_ratio(speeds.get((mine, depth), {}), speeds.get((peer, depth), {}))
        return None if value is None else f"{value:.2f}"

    parts = [
        f"#### {kind.capitalize()}, tokens/s",
        table(["depth", *engines], medians("tokens_per_second", 1, 1)),
    ]
    parts += [
        f"#### {kind.capitalize()}, peak memory, MB",
        table(["depth", *engines], medians("peak_rss_bytes", 1e-6, 0)),
    ]
    if ours and peers:
        pairs = [(mine, peer) for mine in ours for peer in peers]
        rows = [[str(depth), *(ratio(*pair, depth) for pair in pairs)] for depth in depths]
        parts += [
            f"#### {kind.capitalize()}, ours / theirs",
            table(["depth", *(f"{a} / {b}" for a, b in pairs)], rows),
        ]
    return "\n\n".join(parts)


def machine():
    """One line on the machine."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", info)
    flags = set((re.search(r"flags\s*:\s*(.*)", info) or ["", ""])[1].split())
    simd = [
        flag
        for flag in ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni")
        if flag in flags
    ]
    total = (
        int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    )
    cpu = name[1] if name else platform.machine()
    return f"{os.cpu_count()} cores of {cpu} ({', '.join(simd)}), {total:.0f} GiB"


def report(args, results, failed, loads):
    """The text between the markers. Paths of this machine are left out of the command line."""
    shown = re.sub(
        r"(--(?:torch-python|model|palimpsest|out)[ =])\S*/", r"\1", " ".join(sys.argv[1:])
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    notes = sorted({row.note for row in results if row.note})
    command = textwrap.wrap(
        f"cargo xtask bench-peers {shown}", 94, break_long_words=False, break_on_hyphens=False
    )
    lines = [
        f"Date: {datetime.date.today()}; commit {commit}; {args.rounds} rounds, "
        f"{args.threads} threads; {'; '.join(notes)}.",
        f"Machine: {machine()}; load average {loads[0]:.1f} before and {loads[1]:.1f} after.",
    ]
    parts = [
        "```sh\n" + " \\\n    ".join(command) + "\n```",
        "\n".join(f"- {line}" for line in lines),
    ]
    parts += [
        kind_section(kind, [row for row in results if row.kind == kind]) for kind in args.kinds
    ]
    if failed:
        parts.append(
            "Not measured:\n"
            + "\n".join(f"- {' '.join(map(str, key))}: {why}" for key, why in failed.items())
        )
    return "\n\n".join(parts)


def splice(document, body):
    """Puts `body` between the markers, which are added at the end when the document has none.

    >>> splice(f"a\\n{BEGIN}\\nold\\n{END}\\nz\\n", "new") == f"a\\n{BEGIN}\\nnew\\n{END}\\nz\\n"
    True
    >>> splice("a\\n", "new") == f"a\\n\\n{BEGIN}\\nnew\\n{END}\\n"
    True
    """
    block = f"{BEGIN}\n{body}\n{END}"
    if BEGIN in document and END in document:
        before, rest = document.split(BEGIN, 1)
        return before + block + rest.split(END, 1)[1]
    return f"{document.rstrip()}\n\n{block}\n"


# --- command line ---------------------------------------------------------------------------------


def numbers(text):
    return [int(word) for word in text.split(",")]


def words(text):
    return text.split(",")


def parse_args():
    parser = argparse.ArgumentParser(
        prog="cargo xtask bench-peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="GGUF file (default: what `palimpsest pull` fetches)")
    parser.add_argument(
        "--palimpsest", default=ROOT / "target/release/palimpsest", help="our program"
    )
    parser.add_argument("--depths", type=numbers, default=[512, 2048, 8192, 32768])
    parser.add_argument("--kinds", type=words, default=["prefill", "decode"])
    parser.add_argument(
        "--budgets",
        type=words,
        default=["1024", "full"],
        help="our KV budgets, slots per KV head or `full`; `none`: leave ours out",
    )
    parser.add_argument(
        "--llama-types",
        type=words,
        default=["as-is", "F16", "Q8_0"],
        help="number types for llama.cpp; `none`: leave it out",
    )
    parser.add_argument(
        "--torch-python",
        help="a Python that has torch, transformers, accelerate and gguf; without it PyTorch is "
        "left out",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--decode-tokens", type=int, default=32, help="tokens that decode is timed over"
    )
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds one measurement may take"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes for building llama.cpp"
    )
    parser.add_argument("--build-only", action="store_true", help="build llama.cpp and stop")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "BENCHMARKS.md")
    return parser.parse_args()


def make_engines(args):
    engines = [Palimpsest(args, budget) for budget in args.budgets if budget != "none"]
    if args.llama_types != ["none"]:
        programs = build_llama_cpp(args.jobs)
        models = converted_models(programs, args.model, args.llama_types, args.threads)
        engines += [LlamaCpp(args, programs, kind, path) for kind, path in models.items()]
    if args.torch_python:
        engines.append(Torch(args))
    return engines


def main():
    args = parse_args()
    if args.build_only:
        print(build_llama_cpp(args.jobs))
        return
    if not args.model:
        pulled = subprocess.run(
            [str(args.palimpsest), "pull"], check=True, capture_output=True, text=True
        ).stdout
        args.model = pulled.splitlines()[-1].strip()
    engines = make_engines(args)
    load_before = os.getloadavg()[0]
    log_path = PEERS / f"results-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "w") as log:
        results, failed = run_rounds(engines, args, log)
    if not results:
        sys.exit("nothing was measured")
    body = report(args, results, failed, (load_before, os.getloadavg()[0]))
    document = args.out.read_text() if args.out.exists() else "# Benchmarks\n"
    args.out.write_text(splice(document, body))
    print(f"single measurements: {log_path}\ntables: {args.out}")


if __name__ == "__main__":
    main()
