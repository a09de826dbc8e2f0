# AIPerf: `pip install aiperf`.
model=$("${PALIMPSEST:-palimpsest}" pull)
tokenizer=$PWD/target/clients/tokenizer
python3 tests/clients/gguf_tokenizer.py "$model" "$tokenizer"
artifacts=$(mktemp -d)
# Where it may not ask the hub, AIPerf looks for no folders either.
unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE

# ANCHOR: profile
aiperf profile --url 127.0.0.1:8000 --model SmolLM2-135M-Instruct \
    --endpoint-type chat --streaming --tokenizer "$tokenizer" \
    --synthetic-input-tokens-mean 32 --output-tokens-mean 8 \
    --request-count 4 --concurrency 2 --ui none --output-artifact-dir "$artifacts"
# ANCHOR_END: profile

python3 - "$artifacts" <<'END'
import json
import sys
from pathlib import Path

(report,) = Path(sys.argv[1]).rglob("profile_export_aiperf.json")
figures = json.loads(report.read_text())
assert figures["request_count"]["avg"] == 4, figures
END
echo ok
