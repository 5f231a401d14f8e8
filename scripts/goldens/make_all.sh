#!/usr/bin/env bash
# Regenerates every committed golden file with other software.
#
#   scripts/goldens/make_all.sh PYTHON
#
# PYTHON is an interpreter with torch, transformers (>= 5.2), safetensors, mlx and mlx-lm 0.32. Run it whenever the embedded checkpoint or
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
# Variants of config.json and of the head.
cargo run --quiet -p q35-testkit --example write_checkpoint -- "$work/variants-nested" f32
cargo run --quiet -p q35-testkit --example write_checkpoint -- "$work/variants-flat" text-only untied f32
"$python" scripts/goldens/config_variants.py "$work/variants-nested" "$work/variants-flat" "$golden/config_variants.json"
"$python" scripts/goldens/reference.py crates/nano/model "$golden/nano.safetensors" --rows 6

# Quantization, and whole conversions by mlx-lm.
"$python" scripts/goldens/affine.py crates/quant/tests/golden
converted() {
    local name=$1 bits=$2 group_size=$3
    shift 3
    cargo run --quiet -p q35-testkit --example write_checkpoint -- "$work/mlx-$name" "$@"
    "$python" scripts/goldens/mlx_conversion.py "$work/mlx-$name" "crates/format-mlx/tests/golden/$name.json" "$bits" "$group_size"
}
mkdir -p crates/format-mlx/tests/golden
converted tiny-4-64 4 64
converted more-value-heads-untied-3-128 3 128 more-value-heads untied sharded
converted f16-8-32 8 32 f16
converted f32-5-64 5 64 f32

# The description that a conversion of the embedded checkpoint is held to.
"$python" scripts/describe_checkpoint.py crates/nano/model q35-nano --pin > manifests/q35-nano.json
