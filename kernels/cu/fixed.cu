// Fixed point between a row-parallel product and its sum over ranks: kernels/src/fixed.rs, bit for
// bit.
//
//   to_fixed    out = x in steps of 2^-27, rounded to even; POISON where x is beyond the limit or
//   no number from_fixed  out = sums as f32, rounded once; NaN where one of the terms was POISON
//
// Bound by memory: a value a thread. Doubles hold all 46 bits of a value and are exact but for the
// last rounding.
#include "common.cuh"

constexpr double FIXED_STEPS = 134217728.0;
constexpr float FIXED_LIMIT = 262144.0f;
constexpr int64_t FIXED_POISON = (int64_t)1 << 56;

extern "C" __global__ void to_fixed(const float *x, uint64_t len, int64_t *out) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float value = x[i];
    // NaN is not within the limit either.
    out[i] =
        fabsf(value) <= FIXED_LIMIT ? (int64_t)rint((double)value * FIXED_STEPS) : FIXED_POISON;
}
REGISTER_KERNEL(to_fixed)

extern "C" __global__ void from_fixed(const int64_t *sums, uint64_t len, float *out) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    int64_t sum = sums[i];
    uint64_t magnitude = sum < 0 ? 0 - (uint64_t)sum : (uint64_t)sum;
    out[i] = magnitude < (uint64_t)1 << 55 ? (float)((double)sum * (1.0 / FIXED_STEPS))
                                           : __uint_as_float(0x7fc00000u);
}
REGISTER_KERNEL(from_fixed)
