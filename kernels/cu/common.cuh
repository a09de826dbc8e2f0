// What all kernels share: element types, warp helpers, and the few instructions that need PTX.
//
// The same sources compile twice: by nvcc for the device, and by a C++ compiler for the emulated
// device of the tests (PALIMPSEST_EMULATED), which runs every CUDA thread as a fiber with the
// semantics of barriers and shuffles. Fragment layouts are those of the PTX manual, "Matrix
// fragments for mma.m16n8k16".
#pragma once

#ifdef PALIMPSEST_EMULATED
#include "emulated/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
// Dynamic shared memory of the block.
extern __shared__ __align__(16) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED(name) unsigned char *name = dynamic_shared
#define REGISTER_KERNEL(name)
#endif

constexpr unsigned FULL = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float HALF_MAX = 65504.0f;
// Slots of a page: PageShape::SLOTS.
constexpr uint32_t SLOTS = 32;
constexpr uint32_t NONE = 0xffffffffu;

// One KV head of one sequence, as kernels/src/cuda/launch/records.rs has it. Offsets count elements
// of the packed arrays.
struct Item {
    uint32_t row;  // first token row
    uint32_t rows; // token rows
    uint32_t kv_head;
    uint32_t len;   // slots, those of the rows included
    uint32_t table; // first page in `tables`
    uint32_t first; // first entry in `first_visible`, or NONE
    uint32_t extra; // latent memory's entry of `states`; first float of row weights; first entry of
                    // lists
    uint32_t count; // centroids, features, entries of lists
    uint32_t output; // first element of the result
    uint32_t flags;  // see the kernel
};

// ---- element types
// ----------------------------------------------------------------------------------------------

// Halves saturate (an infinity in a slot that a row does not see would turn its weight of zero into
// NaN); NaN stays.
__device__ inline float saturate_half(float x) {
    return x > HALF_MAX ? HALF_MAX : (x < -HALF_MAX ? -HALF_MAX : x);
}

#ifndef PALIMPSEST_EMULATED
typedef __half half_t;
typedef __nv_bfloat16 bf16_t;
__device__ inline float to_float(float x) {
    return x;
}
__device__ inline float to_float(half_t x) {
    return __half2float(x);
}
__device__ inline float to_float(bf16_t x) {
    return __bfloat162float(x);
}
__device__ inline half_t half_bits(uint16_t bits) {
    return __ushort_as_half(bits);
}
__device__ inline bf16_t bf16_bits(uint16_t bits) {
    return __ushort_as_bfloat16(bits);
}
__device__ inline uint32_t pack_half(float low, float high) {
    half2 pair = __floats2half2_rn(saturate_half(low), saturate_half(high));
    return *reinterpret_cast<uint32_t *>(&pair);
}
__device__ inline uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}
__device__ inline void store(float *at, float x) {
    *at = x;
}
__device__ inline void store(half_t *at, float x) {
    *at = __float2half_rn(saturate_half(x));
}
__device__ inline void store(bf16_t *at, float x) {
    *at = __float2bfloat16_rn(x);
}
#endif

// Two bfloat16 as floats.
__device__ inline float2 unpack_bf16(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// ---- warps and blocks
// ----------------------------------------------------------------------------------------------

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

// Sum over the block in a fixed order; `partial` has a float for each warp. All threads get it.
__device__ inline float block_sum(float x, float *partial) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
    __syncthreads();
    return sum;
}

__device__ inline float block_max(float x, float *partial) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float most = partial[0];
    for (uint32_t w = 1; w < blockDim.x / 32; ++w) most = fmaxf(most, partial[w]);
    __syncthreads();
    return most;
}

// ---- slots
// ----------------------------------------------------------------------------------------------

// A page is keys [32][D], then values [32][D]; of 8-bit integers also the scales of 32 keys and of
// 32 values, in halves, which all elements of a key or a value are multiples of (KvType::Q8 in
// kernels/src/backend.rs).
typedef int8_t eight_t;
template <class T>
constexpr bool SCALED = sizeof(T) == 1;
__device__ inline float to_float(eight_t x) {
    return (float)x;
}
// An integer. Nothing stores one without its scale.
__device__ inline void store(eight_t *at, float x) {
    *at = (eight_t)x;
}

// Elements of a page.
template <class T>
__device__ inline size_t page_len(uint32_t dim) {
    return (size_t)2 * SLOTS * dim + (SCALED<T> ? 2 * SLOTS * sizeof(half_t) : 0);
}

template <class T>
__device__ inline T *slot_key(T *pages, const uint32_t *table, uint32_t slot, uint32_t dim) {
    return pages + (size_t)table[slot / SLOTS] * page_len<T>(dim) + (size_t)(slot % SLOTS) * dim;
}

// Scale of a slot's key; that of its value lies SLOTS further. For scaled types only.
template <class T>
__device__ inline half_t *slot_scales(T *pages, const uint32_t *table, uint32_t slot,
                                      uint32_t dim) {
    const T *page = pages + (size_t)table[slot / SLOTS] * page_len<T>(dim);
    return (half_t *)(page + (size_t)2 * SLOTS * dim) + slot % SLOTS;
}

// What elements of a slot's key and of its value are multiplied with.
template <class T>
__device__ inline float2 read_scales(const T *pages, const uint32_t *table, uint32_t slot,
                                     uint32_t dim) {
    if (!SCALED<T>) return make_float2(1.0f, 1.0f);
    const half_t *scales = slot_scales(pages, table, slot, dim);
    return make_float2(to_float(scales[0]), to_float(scales[SLOTS]));
}

// The largest half with 127 s <= max.
__device__ inline half_t scale_of(float max) {
    float want = fminf(__fdiv_rn(max, 127.0f), HALF_MAX);
    half_t near;
    store(&near, want);
    // Halves above zero are in the order of their bits.
    return to_float(near) > want ? half_bits((uint16_t)(*reinterpret_cast<uint16_t *>(&near) - 1))
                                 : near;
}

// Stores one element; `scale` counts for scaled types.
template <class T>
__device__ inline void store_scaled(T *at, float x, float scale) {
    if (!SCALED<T>) return store(at, x);
    bool none = scale == 0.0f || x != x;
    store(at, none ? 0.0f : fminf(fmaxf(rintf(__fdiv_rn(x, scale)), -127.0f), 127.0f));
}

// What a policy keeps with a slot, value and position.
template <class N>
__device__ inline N *slot_note(N *notes, const uint32_t *table, uint32_t slot) {
    return notes + (size_t)table[slot / SLOTS] * SLOTS + slot % SLOTS;
}

// ---- tensor cores and asynchronous copies
// --------------------------------------------------------------------------

#ifndef PALIMPSEST_EMULATED
__device__ inline uint32_t shared_address(const void *at) {
    return (uint32_t)__cvta_generic_to_shared(at);
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
// Register i of lane l: elements 2 * (l % 4) and the next of row l / 4 of matrix i.
__device__ inline void ldmatrix(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each matrix transposed.
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// c[16x8] += a[16x16] b[16x8], halves, f32 sums.
__device__ inline void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same for bfloat16.
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Copies `bytes` (0 or 16) to shared memory and zeroes the rest of the 16.
__device__ inline void copy_async(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
}
__device__ inline void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N groups of this thread's copies are under way.
template <int N>
__device__ inline void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif
