# lm-eval: `pip install "lm-eval[api]" transformers`. Tasks of every kind that asks something else
# of a server, over tests/clients/tasks.
model=$("${PALIMPSEST:-palimpsest}" pull)
tokenizer=target/clients/tokenizer
python3 tests/clients/gguf_tokenizer.py "$model" "$tokenizer"
export OPENAI_API_KEY=none
results=$(mktemp -d)

# ANCHOR: likelihood
lm_eval run --model local-completions \
    --model_args model=SmolLM2-135M-Instruct \
        base_url=http://127.0.0.1:8000/v1/completions \
        tokenizer_backend=huggingface tokenizer="$tokenizer" \
    --include_path tests/clients/tasks \
    --tasks colours colours_rolling colours_generate \
    --output_path "$results"
# ANCHOR_END: likelihood

# ANCHOR: chat
lm_eval run --model local-chat-completions --apply_chat_template \
    --model_args model=SmolLM2-135M-Instruct \
        base_url=http://127.0.0.1:8000/v1/chat/completions \
    --include_path tests/clients/tasks --tasks colours_generate \
    --output_path "$results"
# ANCHOR_END: chat

python3 - "$results" <<'END'
import json
import sys
from pathlib import Path

found = {}
for path in Path(sys.argv[1]).rglob("results_*.json"):
    for task, scores in json.loads(path.read_text())["results"].items():
        found.setdefault(task, []).append(scores)
assert 0 <= found["colours"][0]["acc,none"] <= 1, found
assert found["colours_rolling"][0]["word_perplexity,none"] > 1, found
assert len(found["colours_generate"]) == 2, found
END
echo ok
