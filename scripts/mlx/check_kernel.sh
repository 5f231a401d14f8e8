#!/usr/bin/env bash
# Compiles the Metal kernel as C++, runs it on a CPU and compares it with the recurrence in double precision (needs
# g++ >= 11 or a clang with C++20).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CXX:-c++}" -std=c++20 -O1 -pthread -I"$here/../../crates/backend-mlx/src" "$here/kernel_on_cpu.cpp" -o "$work/kernel"
"$work/kernel"
