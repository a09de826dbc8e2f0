# guidellm: `pip install guidellm`.
model=$("${PALIMPSEST:-palimpsest}" pull)
tokenizer=$PWD/target/clients/tokenizer
python3 tests/clients/gguf_tokenizer.py "$model" "$tokenizer"
report=$(mktemp -d)/report.json

# ANCHOR: benchmark
guidellm benchmark run --target http://127.0.0.1:8000 \
    --model SmolLM2-135M-Instruct --processor "$tokenizer" \
    --data prompt_tokens=32,output_tokens=8 --rate-type synchronous --max-requests 3 \
    --output-path "$report"
# ANCHOR_END: benchmark

python3 - "$report" <<'END'
import json
import sys

(benchmark,) = json.load(open(sys.argv[1]))["benchmarks"]
totals = benchmark["request_totals"]
assert totals["successful"] == 3 and totals["errored"] == 0, totals
END
echo ok
