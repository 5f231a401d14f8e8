#!/bin/sh
# Concurrent conversations for ten minutes, to detect memory growth: scripts/bench/soak.sh MODEL_DIR [SECONDS [SESSIONS]]
set -eu
exec cargo run --release -p q35-runtime --example soak -- "$1" "${2:-600}" "${3:-6}"
