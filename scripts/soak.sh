#!/bin/sh
# Concurrent conversations for ten minutes, and whether memory grows: scripts/soak.sh MODEL_DIR [SECONDS [SESSIONS]]
set -eu
exec cargo run --release -p q35-runtime --example soak -- "$1" "${2:-600}" "${3:-6}"
