#!/bin/sh
# Compiles the kernels where there is nvcc and no Rust: rebuild.sh [kernels/cu] [out.fatbin].
# Every program of the bundle then loads them: PALIMPSEST_KERNELS=out.fatbin.
set -eu
sources=${1:-kernels/cu}
out=${2:-kernels.fatbin}
${NVCC:-nvcc} -std=c++17 -O3 -fatbin -Xptxas -v --threads 0 \
    -gencode arch=compute_90a,code=sm_90a -o "$out" "$sources/kernels.cu" 2> "$out.ptxas.txt"
if grep -E '[1-9][0-9]* bytes spill' "$out.ptxas.txt"; then
    echo "registers are spilled: see $out.ptxas.txt" >&2
fi
echo "$out"
