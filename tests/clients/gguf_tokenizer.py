"""Writes the tokenizer of the default model where Hugging Face's programs read one.

    python3 tests/clients/gguf_tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf FOLDER

Evaluation harnesses and load generators tokenise for themselves, and a GGUF file has its tokenizer
inside. Its vocabulary and merges are taken from there; the rest is GPT-2's byte-level BPE with
digits one by one, which the file calls `smollm`.
"""

import json
import struct
import sys
from pathlib import Path

# Numbers of the kinds of values, as ggml's docs/gguf.md has them.
SCALARS = dict(enumerate(["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"])) | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
TEXT, LIST = 8, 9
CONTROL = 3


class Reader:
    """What stands before the tensors of a GGUF file."""

    def __init__(self, file):
        self.file = file

    def scalar(self, form: str):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.file.read(self.scalar("<Q")).decode()

    def value(self, kind: int):
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            kind, count = self.scalar("<I"), self.scalar("<Q")
            return [self.value(kind) for _ in range(count)]
        return self.scalar(SCALARS[kind])

    def metadata(self) -> dict:
        assert self.file.read(4) == b"GGUF", "no GGUF file"
        _version, _tensors, count = (self.scalar(form) for form in ("<I", "<Q", "<Q"))
        return {self.text(): self.value(self.scalar("<I")) for _ in range(count)}


def tokenizer(metadata: dict) -> dict:
    """A `tokenizer.json`."""
    assert metadata["tokenizer.ggml.pre"] == "smollm", metadata["tokenizer.ggml.pre"]
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": id, "content": token, "special": True, **flags}
        for id, (token, kind) in enumerate(zip(tokens, kinds))
        if kind == CONTROL
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [digits, {**bytes_, "use_regex": True}],
        },
        "decoder": {**bytes_, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def main(model: str, folder: str):
    with open(model, "rb") as file:
        metadata = Reader(file).metadata()
    end = metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "tokenizer.json").write_text(json.dumps(tokenizer(metadata)))
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
