"""How likely a text is, by lm-eval over HTTP and by `palimpsest eval perplexity`: both must say the
same of every token, to 1e-4.

`pip install "lm-eval[api]" transformers`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

program = os.environ.get("PALIMPSEST", "palimpsest")
pulled = subprocess.run([program, "pull"], check=True, capture_output=True, text=True)
make = [sys.executable, "tests/clients/gguf_tokenizer.py", pulled.stdout.split()[-1]]
subprocess.run([*make, "target/clients/tokenizer"], check=True)

# ANCHOR: likelihood
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

model = LocalCompletionsAPI(
    model="SmolLM2-135M-Instruct",
    base_url="http://127.0.0.1:8000/v1/completions",
    tokenizer_backend="huggingface",
    tokenizer="target/clients/tokenizer",
)
text = "Once upon a time"
asked = Instance(request_type="loglikelihood", doc={}, arguments=(text, " there was"), idx=0)
((likelihood, is_greedy),) = model.loglikelihood([asked])
print(likelihood, is_greedy)
# ANCHOR_END: likelihood

# The contract is `full` on both sides: the text is shorter than what the server keeps of each.
LENGTH = 384
ids = model.tok_encode(Path("assets/gpl-3.0.txt").read_text().lstrip())[:LENGTH]
context, rest = model.tokenizer.decode(ids[:1]), model.tokenizer.decode(ids[1:])
assert model.tok_encode(context + rest) == ids, "the pieces are tokenised as the whole"
asked = Instance(request_type="loglikelihood", doc={}, arguments=(context, rest), idx=0)
((theirs, _),) = model.loglikelihood([asked])

folder = Path(tempfile.mkdtemp())
(folder / "text.txt").write_text(context + rest)
command = f"{program} eval perplexity --policies full --samples 1 --lengths {LENGTH}"
files = ["--text", str(folder / "text.txt"), "--out", str(folder)]
subprocess.run([*command.split(), *files], check=True)
(sample,) = map(json.loads, (folder / "perplexity.jsonl").read_text().splitlines())
# Position 0 has no prediction.
counts = [bucket["end"] - max(bucket["start"], 1) for bucket in sample["buckets"]]
assert sum(counts) == LENGTH - 1, sample
ours = -sum(bucket["loss"] * count for bucket, count in zip(sample["buckets"], counts))

difference = abs(theirs - ours) / (LENGTH - 1)
print(f"{theirs:.5f} and {ours:.5f}: {difference:.1e} per token")
assert difference <= 1e-4, (theirs, ours)
print("ok")
