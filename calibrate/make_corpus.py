"""Text that every Python and Debian carries, as a corpus for `palimpsest calibrate`.

The default model's indexer was trained on this corpus: Python's own reference topics, Perl's manual pages and licence
texts. The GNU GPL 3 is left out, because `quickstart` and the evaluation read it.

    python3 calibrate/make_corpus.py DIRECTORY
"""

import pathlib
import pydoc_data.topics
import sys

OUT = pathlib.Path(sys.argv[1])
LICENCES = ["Apache-2.0", "Artistic", "CC0-1.0", "GFDL-1.3", "GPL-1", "GPL-2", "LGPL-2.1", "MPL-2.0"]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    topics = pydoc_data.topics.topics
    (OUT / "python-topics.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)))
    for name in LICENCES:
        licence = pathlib.Path("/usr/share/common-licenses") / name
        if licence.exists():
            (OUT / f"licence-{name}.txt").write_bytes(licence.read_bytes())
    for pod in sorted(pathlib.Path("/usr/share/perl").glob("*/pod/*.pod")):
        (OUT / f"perl-{pod.stem}.txt").write_bytes(pod.read_bytes())
    size = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{len(list(OUT.iterdir()))} files, {size} bytes")


if __name__ == "__main__":
    main()
