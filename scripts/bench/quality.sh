#!/usr/bin/env bash
# Loss of every recipe, evaluated by other software, and the ablation of the calibration.
#
#   scripts/bench/quality.sh PYTHON JUDGE CHECKPOINT PROSE DIALOGUES WORK
#
# PYTHON has torch, transformers and mlx. JUDGE is a script that is called as
#   JUDGE CHECKPOINT --text FILE|--chat FILE DIR...
# and prints bits per weight, perplexity, KL(float || quantized) and top-1 for every MLX directory. PROSE and DIALOGUES
# are texts that calibration never saw. Existing directories in WORK are evaluated without converting again.
#
# Set RAYON_NUM_THREADS=1 on a shared machine: candle's threads spin while they wait for each other.
set -euo pipefail
[ $# -eq 6 ] || { sed -n '2,11p' "$0"; exit 2; }
python=$1 judge=$2 checkpoint=$3 prose=$4 dialogues=$5 work=$6
repository=$(cd "$(dirname "$0")/../.." && pwd)
cargo build --release --quiet --manifest-path "$repository/Cargo.toml" -p q35-cli --bin q35-convert
cargo build --release --quiet --manifest-path "$repository/Cargo.toml" -p q35-calibrate --example ablation
convert=$repository/target/release/q35-convert
mkdir -p "$work"
make() {
    local name=$1
    shift
    [ -d "$work/$name" ] || "$convert" mlx --model "$checkpoint" --out "$work/$name" "$@"
}
for bits in 8 5 4; do
    make "int$bits-rtn" --bits "$bits"
done
make int4-best --recipe calibrated
directories=("$work/int8-rtn" "$work/int5-rtn" "$work/int4-rtn" "$work/int4-best")

# mlx-lm's methods: GPTQ, and bits by measured sensitivity.
peer() {
    local name=$1 module=$2
    shift 2
    [ -d "$work/$name" ] || "$python" -m "$module" --model "$checkpoint" --mlx-path "$work/$name" "$@" \
        > "$work/$name.log" 2>&1 || { echo "$name: $module does not run on this model, see $work/$name.log"; return; }
    directories+=("$work/$name")
}
peer int4-mlx-lm-gptq mlx_lm.quant.gptq --bits 4 --group-size 64
peer int4-mlx-lm-dynamic mlx_lm.quant.dynamic_quant --target-bpw 4.66

echo "== prose"
"$python" "$judge" "$checkpoint" --text "$prose" "${directories[@]}"
echo "== dialogues"
"$python" "$judge" "$checkpoint" --chat "$dialogues" "${directories[@]}"
echo "== ablation, on prose"
"$repository/target/release/examples/ablation" "$checkpoint" "$prose"
