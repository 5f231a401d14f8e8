#!/usr/bin/env bash
# Remakes every committed golden file from other people's software.
#
#   scripts/goldens/make_all.sh PYTHON
#
# PYTHON is an interpreter with torch, transformers (>= 5.2) and safetensors. Run it whenever the embedded checkpoint or
# the generator of tiny checkpoints changed; the tests compare hashes and say so.
set -euo pipefail
python=$1
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The float reference: crates/reference/tests/golden.
golden=crates/reference/tests/golden
tiny() {
    local name=$1
    shift
    cargo run --quiet -p q35-testkit --example write_checkpoint -- "$work/$name" "$@"
    "$python" scripts/goldens/reference.py "$work/$name" "$golden/$name.safetensors"
}
tiny tiny
tiny more-value-heads-untied more-value-heads untied sharded
tiny text-only-untied text-only untied
"$python" scripts/goldens/reference.py crates/nano/model "$golden/nano.safetensors" --rows 6
