#!/bin/sh
# A document is read once: asked about five times, then once more after the server was killed and
# started again.
#
#   sh examples/read_once.sh DOCUMENT [OPTIONS OF serve]
set -eu
document=${1:?"usage: sh examples/read_once.sh DOCUMENT [OPTIONS OF serve]"}
shift
palimpsest=${PALIMPSEST:-palimpsest}
states=$(mktemp -d)
server=

start() {
  "$palimpsest" serve --no-http --listen 127.0.0.1:50071 --snapshot-store "$states" "$@" &
  server=$!
  # A process that was started answers once it has its model.
  until "$palimpsest" generate --server 127.0.0.1:50071 --raw --prompt . --max-tokens 1 \
    >/dev/null 2>&1; do
    kill -0 "$server"
    sleep 0.2
  done
}

ask() {
  "$palimpsest" generate --server 127.0.0.1:50071 --max-tokens 16 --json \
    --prompt-file "$document" --prompt "$1" |
    sed -n 's/.*"event":"finished".*"cached_tokens":\([0-9]*\).*"first_token_seconds":\([0-9.]*\).*/\1 \2/p' |
    { read -r cached seconds && printf '%-44s %8s tokens not read, first token after %.2f s\n' \
      "$1" "$cached" "$seconds"; }
}

trap 'kill -9 $server 2>/dev/null; rm -rf "$states"' EXIT
start "$@"
for question in "Who wrote it?" "When was that?" "What is it about?" "Whom is it for?" "How does it end?"
do
  ask "$question"
done
# What an answer leaves is written in the background.
sleep 2
kill -9 "$server"
wait "$server" 2>/dev/null || true
echo "killed; started again"
start "$@"
ask "What follows from it?"
