#!/usr/bin/env bash
# Clients of other makers against the server over a scripted model. Installs them into .clients.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .clients/bin/python ] || python3 -m venv .clients
.clients/bin/pip install --quiet openai==3.57.0 anthropic==2.14.0 langchain-openai==1.7.4 langchain-tests==1.1.9 \
  pytest schemathesis==4.32.5
cargo build --release --locked --quiet -p q35-server --example scripted
work=$(mktemp -d)
target/release/examples/scripted >"$work/address" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ -s "$work/address" ] && break; sleep 0.1; done
Q35_SERVER=http://$(cat "$work/address")
export Q35_SERVER

echo "-- openai and anthropic"
.clients/bin/python -m pytest -q scripts/judge/server/test_clients.py
echo "-- langchain's standard tests"
.clients/bin/python -m pytest -q scripts/judge/server/test_langchain.py
echo "-- schemathesis over the OpenAPI document: no request makes the server fail"
.clients/bin/schemathesis run "$Q35_SERVER/openapi.json" --url "$Q35_SERVER" --header "Authorization: Bearer test" \
  --checks not_a_server_error --max-examples 50
