"""Text that every Python and Debian carries, as a corpus for `palimpsest calibrate`.

The default model's indexer was fitted on Python's own reference topics, Perl's manual pages and
licence texts, and tuned on prose with names, dates and numbers that Debian packages carry (they are
downloaded, not installed). The GNU GPL 3 is left out, because `quickstart` and the evaluation read
it, and so is the King James Bible, on which prose is measured.

    python3 calibrate/make_corpus.py DIRECTORY
    python3 calibrate/make_corpus.py --prose DIRECTORY
"""

import argparse
import gzip
import pathlib
import pydoc_data.topics
import re
import subprocess
import tempfile

LICENCES = [
    "Apache-2.0",
    "Artistic",
    "CC0-1.0",
    "GFDL-1.3",
    "GPL-1",
    "GPL-2",
    "LGPL-2.1",
    "MPL-2.0",
]
FORTUNES = "computers education humorists law people science wisdom work".split()
# Files of Debian packages.
PROSE = {
    "debian-history": ["usr/share/doc/debian-history/docs/project-history.en.txt.gz"],
    "debian-faq": ["usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"],
    "debian-reference-en": ["usr/share/debian-reference/debian-reference.en.txt.gz"],
    "dict-jargon": ["usr/share/dictd/jargon.dict.dz"],
    "dict-foldoc": ["usr/share/dictd/foldoc.dict.dz"],
    "fortunes": [f"usr/share/games/fortunes/{name}" for name in FORTUNES],
}
# Characters of each that are taken, so that none drowns the others.
MOST = 1_500_000


def manuals(out):
    topics = pydoc_data.topics.topics
    (out / "python-topics.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)))
    for name in LICENCES:
        licence = pathlib.Path("/usr/share/common-licenses") / name
        if licence.exists():
            (out / f"licence-{name}.txt").write_bytes(licence.read_bytes())
    for pod in sorted(pathlib.Path("/usr/share/perl").glob("*/pod/*.pod")):
        (out / f"perl-{pod.stem}.txt").write_bytes(pod.read_bytes())


def prose(out):
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-qq", *PROSE], cwd=scratch, check=True)
        for package, files in PROSE.items():
            (archive,) = pathlib.Path(scratch).glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, scratch], check=True)
            for file in files:
                data = (pathlib.Path(scratch) / file).read_bytes()
                data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                name = pathlib.Path(file).name.split(".")[0]
                text = _plain(data.decode(errors="replace"))[:MOST]
                (out / f"{package}-{name}.txt").write_text(text)


def _plain(text):
    """Paragraphs on a line each, without dictionaries' marks and lines drawn with punctuation."""
    paragraphs = (re.sub(r"[{}]|[-=_*%]{3,}", " ", p) for p in re.split(r"\n\s*\n|\n%\n", text))
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, metavar="DIRECTORY")
    parser.add_argument(
        "--prose",
        action="store_true",
        help="prose from Debian packages; needs apt-get and dpkg-deb",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (prose if args.prose else manuals)(args.out)
    sizes = [path.stat().st_size for path in args.out.iterdir()]
    print(f"{len(sizes)} files, {sum(sizes)} bytes")


if __name__ == "__main__":
    main()
