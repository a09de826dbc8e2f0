#!/bin/sh
# Asks a running server with curl: which model it has, then a question, whole and as a stream.
#
#     palimpsest serve                                  # in another terminal
#     sh examples/curl.sh "Name three colours."
#
# The question must not have characters that JSON escapes. The second argument is the server's
# address, if it is not the default one.
set -eu

question=${1:-Name three colours.}
server=${2:-http://127.0.0.1:8000}

# --fail-with-body: an error of the server is an error of this script, and its text is shown.
ask() {
    curl --silent --show-error --fail-with-body --no-buffer "$@"
    echo
}

# The model that is served, the policies that it can use, and the contract of requests that ask for
# nothing.
ask "$server/v1/models"

# How many tokens the question has.
ask "$server/tokenize" -d "{\"prompt\": \"$question\"}"

# An answer whole. kv_budget is ours: how many entries each KV head may hold.
ask "$server/v1/chat/completions" -H 'Content-Type: application/json' -d "{
    \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}],
    \"max_tokens\": 16, \"temperature\": 0, \"kv_budget\": 256
}"

# The same as server-sent events. The last one before [DONE] has the usage, with what was held and
# evicted.
ask "$server/v1/chat/completions" -H 'Content-Type: application/json' -d "{
    \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}],
    \"max_tokens\": 16, \"temperature\": 0, \"kv_budget\": 256,
    \"stream\": true, \"stream_options\": {\"include_usage\": true}
}"
