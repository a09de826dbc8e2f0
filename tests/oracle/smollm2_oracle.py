"""What SmolLM2-135M-Instruct (Q4_1) computes in f32 by transformers, and what its tokenizer gives.

Writes tests/fixtures/smollm2_oracle.safetensors and tests/fixtures/smollm2_tokenizer.json, so that
the parity tests need no Python. transformers' own conversion of this GGUF's tokenizer is wrong (it
adds BOS, keeps digits together and takes another EOS); the tokenizer here is built from the file's
vocabulary and merges: digits one by one, then GPT-2's byte-level pattern, nothing added.

Per prompt `i`: `prompt.i` i32 [T]; `positions.i` i32 [P], `top_ids.i` i32 [P, 20] and
`top_logprobs.i` f32 [P, 20]: the 20 likeliest next tokens after those positions; `logprobs.i` f16
[V]: all of them after the last position; `continuation.i` i32 [24] and `margins.i` f32 [24]: greedy
tokens, and by how much each logit beat the second.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==4.57.6 gguf==0.19.0 \
        safetensors==0.8.0 numpy==2.4.6 tokenizers==0.22.2 accelerate==1.15.0
    OMP_NUM_THREADS=1 .venv/bin/python tests/oracle/smollm2_oracle.py \
        SmolLM2-135M-Instruct.Q4_1.gguf
"""

import hashlib
import json
import pathlib
import sys

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TOP, CONTINUATION = 20, 24


def chat(*messages):
    """ChatML, with the system line that the model's template inserts."""
    messages = [
        ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        *messages,
    ]
    return (
        "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)
        + "<|im_start|>assistant\n"
    )


PROSE = (
    "The lighthouse at the end of the harbour had not been lit for eleven years when Marta took "
    "the key from the nail behind the door. She climbed slowly, counting the steps as her "
    "grandfather had taught her, and at the ninety-first she stopped to look out over the water. "
    "The boats were coming home. "
)
LEDGER = "".join(
    f"{day} March: {37 * day % 101} crates of apples, {53 * day % 89} of pears.\n"
    for day in range(1, 31)
)

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village at the foot of the mountains,",
    PROSE,
    "Water boils at 100 degrees Celsius at sea level. At higher altitude, the boiling point",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "SELECT name, COUNT(*) FROM orders WHERE year = 2024 GROUP BY",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "3.14159265358979 is an approximation of",
    "Invoice 20451: 12 items at $3.75 each. Total: $",
    "Les oiseaux chantent dans le jardin et",
    "Der schnelle braune Fuchs springt über den",
    "日本の首都は",
    "Emoji test: 🙂🚀🌍 and accents: naïve café, Ångström,",
    chat(("user", "What is the capital of Italy?")),
    chat(("user", "Write a haiku about the sea.")),
    chat(
        ("user", "Add 17 and 25."),
        ("assistant", "17 + 25 = 42."),
        ("user", "Now multiply the result by 2."),
    ),
    '{"name": "Ada", "born": 1815, "fields": ["mathematics",',
    "Ledger of the store.\n" + LEDGER + "Summary: on 7 March there were",
    chat(("user", PROSE * 6 + "\nWho took the key?")),
]

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    " \n ",
    "a",
    " a",
    "a ",
    "Hello",
    "Hello world",
    " Hello world ",
    "hello\nworld",
    "I'm, you're, he'll, she'd, they've, it's, don't",
    "I'M YOU'RE",
    "0",
    "1234567890",
    "3.14159",
    "1,000,000",
    "2024-02-29T23:59:59Z",
    "v1.2.3-rc.4",
    "x1y2z3",
    "$5.00 + 7% = ?",
    "½ ¾ ² ³ Ⅷ ①",
    "٣٤٥ १२३",
    "foo_bar = baz(qux[0], **kw)",
    "    indented\n\tmixed\n",
    "a    b     c",
    "trailing   ",
    "\r\nwindows\r\nlines\r\n",
    "for(int i=0;i<n;++i){a[i]+=b[i];}",
    '<html><body class="x">&amp;</body></html>',
    "https://example.org/a?b=c&d=e#f",
    "user@example.org",
    "C:\\Windows\\System32",
    "naïve café Ångström façade",
    "e\u0301 and \u00e9",
    "Straße ẞ ﬁ ﬂ",
    "Привет, мир!",
    "Καλημέρα κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "你好，世界！",
    "こんにちは世界",
    "안녕하세요",
    "สวัสดีชาวโลก",
    "🙂🚀🌍👩‍👩‍👧‍👦🏳️‍🌈",
    "\u200b\u00a0\u3000",
    "\u0000\u0001\u007f",
    "\ufeffBOM",
    "!!!???...---",
    "((((()))))[]{}<>",
    "\"quoted\" 'single' `code` “smart” ‘quotes’",
    "ALLCAPS lowercase MixedCase snake_case kebab-case",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b",
    "<|im_start|",
    "<repo_name>x<file_sep>y",
    "<jupyter_code>1+1",
    "supercalifragilisticexpialidocious",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    PROSE,
    LEDGER,
]


def tokenizer_of(reader):
    field = lambda key: reader.fields[key].contents()
    tokens, kinds, merges = (
        field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
    )
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds) if kind == 3]
    tokenizer.add_special_tokens([
        AddedToken(token, normalized=False, special=True) for token in special
    ])
    return tokenizer


@torch.no_grad()
def observe(model, ids):
    """Next-token distributions of a prompt at some positions, and its greedy continuation."""
    output = model(torch.tensor([ids]), use_cache=True)
    logprobs = output.logits[0].float().log_softmax(-1)
    last = len(ids) - 1
    positions = torch.tensor(
        sorted({0, last // 4, last // 2, 3 * last // 4, last}), dtype=torch.int32
    )
    top = logprobs[positions.long()].topk(TOP)
    continuation, margins = [], []
    logits, cache = output.logits[0, -1], output.past_key_values
    for _ in range(CONTINUATION):
        best = logits.topk(2)
        continuation.append(best.indices[0].item())
        margins.append((best.values[0] - best.values[1]).item())
        output = model(best.indices[:1][None], past_key_values=cache, use_cache=True)
        logits, cache = output.logits[0, -1], output.past_key_values
    return {
        "prompt": torch.tensor(ids, dtype=torch.int32),
        "positions": positions,
        "top_ids": top.indices.int().contiguous(),
        "top_logprobs": top.values.contiguous(),
        "logprobs": logprobs[-1].half(),
        "continuation": torch.tensor(continuation, dtype=torch.int32),
        "margins": torch.tensor(margins),
    }


def main():
    path = pathlib.Path(sys.argv[1])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, (
        "another file: the fixtures describe this one only"
    )
    tokenizer = tokenizer_of(gguf.GGUFReader(path))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    cases = [{"text": text, "ids": encode(text)} for text in TEXTS]
    for case in cases:
        assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["text"], case
    listing = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (FIXTURES / "smollm2_tokenizer.json").write_text(f"[\n{listing}\n]\n")
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tensors = {}
    for index, prompt in enumerate(PROMPTS):
        found = observe(model, encode(prompt))
        tensors |= {f"{name}.{index}": value for name, value in found.items()}
        text = tokenizer.decode(found["continuation"].tolist(), skip_special_tokens=False)
        print(
            f"{index}: {len(found['prompt'])} tokens, "
            f"least margin {found['margins'].min():.3f}: {text!r}",
            flush=True,
        )
    save_file(tensors, FIXTURES / "smollm2_oracle.safetensors")


if __name__ == "__main__":
    main()
