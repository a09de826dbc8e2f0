# curl, whose answers are looked at with grep.

# ANCHOR: chat
curl -sS http://127.0.0.1:8000/v1/chat/completions \
    -H 'Content-Type: application/json' \
    -d '{"model": "SmolLM2-135M-Instruct", "max_tokens": 16, "temperature": 0,
         "messages": [{"role": "user", "content": "Name three colours."}]}'
# ANCHOR_END: chat
echo

# Fails when the answer to a request lacks a pattern: `holds PATTERN ARGUMENTS OF CURL`.
holds() {
    pattern=$1
    shift
    answer=$(curl -sS --max-time 120 "$@")
    printf '%s' "$answer" | grep -q -e "$pattern" || {
        echo "no $pattern in: $answer" >&2
        exit 1
    }
}

api=http://127.0.0.1:8000
say='"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16'
holds '"finish_reason"' "$api/v1/chat/completions" -d "{$say}"
holds '^data: \[DONE\]' -N "$api/v1/chat/completions" -d "{$say, \"stream\": true}"
holds '"prompt_tokens"' -N "$api/v1/chat/completions" \
    -d "{$say, \"stream\": true, \"stream_options\": {\"include_usage\": true}}"
holds '"text_completion"' "$api/v1/completions" -d '{"prompt": "Once", "max_tokens": 4}'
holds '"SmolLM2-135M-Instruct"' "$api/v1/models"
holds '"embedding"' "$api/v1/embeddings" -d '{"input": "a river"}'
holds '"type":"message"' "$api/v1/messages" -d "{$say}"
holds '"object":"response"' "$api/v1/responses" -d '{"input": "Hello", "max_output_tokens": 4}'

schema='{"type": "object", "properties": {"coast": {"type": "boolean"}}, "required": ["coast"],
         "additionalProperties": false}'
# The answer is JSON in a string of JSON.
holds '\\"coast\\"' "$api/v1/chat/completions" -d "{$say, \"response_format\": {
    \"type\": \"json_schema\", \"json_schema\": {\"name\": \"city\", \"schema\": $schema}}}"
holds '"name":"get"' "$api/v1/chat/completions" -d "{$say, \"tool_choice\": \"required\",
    \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"get\",
    \"parameters\": $schema}}]}"

holds '"param":"kv_budget"' "$api/v1/chat/completions" -d "{$say, \"kv_budget\": 3}"
holds '"model_not_found"' "$api/v1/chat/completions" -d "{$say, \"model\": \"gpt-4\"}"
holds '^HTTP/1.1 400' -i "$api/v1/chat/completions" -d '{'
holds '^HTTP/1.1 404' -i "$api/v1/nothing"
holds '^x-request-id: mine' -i -H 'X-Request-Id: mine' "$api/v1/models"
echo ok
