// An emulated CUDA device: what kernels/cu needs of the language, on the host.
//
// Every thread of a block is a fiber. Barriers, shuffles and tensor-core instructions suspend it
// until all that take part have arrived, so missing or divergent ones are found: the launch fails
// and says which. Threads run in an order drawn from a seed, each as far as it can; two seeds that
// give different results expose a race. Shared memory starts as NaN and has a guarded end; an
// asynchronous copy arrives only when it is waited for.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after the other on a thread of the host.
#define __shared__ static thread_local

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
struct Dim3 {
    uint32_t x, y, z;
};

namespace emulated {

struct Copy {
    void *to;
    const void *from;
    uint32_t bytes, group;
};

enum class State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
    void *stack_pointer;
    Dim3 thread;
    uint32_t lane, warp;
    State state;
    uint32_t group;
    std::vector<Copy> copies;
};

struct Warp {
    uint32_t arrived;
    const char *op;
    void *operands[32];
};

struct Block {
    Dim3 index, block, grid;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    uint32_t at_barrier, done;
    unsigned char *shared;
    std::vector<char> error;
};

extern thread_local Block *block;
extern thread_local Fiber *fiber;
void suspend();
[[noreturn]] void fail(const char *what, const char *detail);
void barrier();
float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);

// Waits for all lanes of the warp; the last one to arrive runs `run` over everyone's operands.
template <class T, class F>
inline void collective(const char *op, T &mine, F run) {
    Warp &warp = block->warps[fiber->warp];
    if (warp.arrived == 0)
        warp.op = op;
    else if (std::strcmp(warp.op, op) != 0)
        fail("lanes of a warp are at different instructions", op);
    warp.operands[fiber->lane] = &mine;
    if (++warp.arrived < 32) {
        fiber->state = State::AtWarp;
        suspend();
        return;
    }
    T *all[32];
    for (int lane = 0; lane < 32; ++lane) all[lane] = static_cast<T *>(warp.operands[lane]);
    run(all);
    warp.arrived = 0;
    Fiber *first = &block->fibers[fiber->warp * 32];
    for (int lane = 0; lane < 32; ++lane)
        if (first[lane].state == State::AtWarp) first[lane].state = State::Ready;
}

template <class T>
struct Shuffle {
    T value, result;
    uint32_t from;
};

template <class T>
inline T shuffle(const char *op, T value, uint32_t from) {
    Shuffle<T> mine{value, value, from};
    collective(op, mine, [](Shuffle<T> **all) {
        for (int lane = 0; lane < 32; ++lane) all[lane]->result = all[all[lane]->from % 32]->value;
    });
    return mine.result;
}

struct Mma {
    const uint32_t *a;
    uint32_t b0, b1;
    float *c;
};

template <class Convert>
inline void mma(const char *op, float *c, const uint32_t *a, uint32_t b0, uint32_t b1,
                Convert convert) {
    Mma mine{a, b0, b1, c};
    collective(op, mine, [convert](Mma **all) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            int row = lane / 4, pair = lane % 4 * 2;
            for (int half = 0; half < 2; ++half) {
                auto part = [&](uint32_t bits) { return convert((uint16_t)(bits >> (16 * half))); };
                left[row][pair + half] = part(all[lane]->a[0]);
                left[row + 8][pair + half] = part(all[lane]->a[1]);
                left[row][pair + 8 + half] = part(all[lane]->a[2]);
                left[row + 8][pair + 8 + half] = part(all[lane]->a[3]);
                right[pair + half][row] = part(all[lane]->b0);
                right[pair + 8 + half][row] = part(all[lane]->b1);
            }
        }
        float sum[16][8] = {};
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int col = 0; col < 8; ++col) sum[row][col] += left[row][k] * right[k][col];
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i)
                all[lane]->c[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    });
}

struct Matrices {
    const uint16_t *row;
    uint32_t *registers;
};

inline void load_matrices(const char *op, uint32_t *r, const void *row, bool transposed) {
    Matrices mine{static_cast<const uint16_t *>(row), r};
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("unaligned matrix row", op);
    collective(op, mine, [transposed](Matrices **all) {
        for (int lane = 0; lane < 32; ++lane)
            for (int matrix = 0; matrix < 4; ++matrix) {
                uint32_t bits = 0;
                for (int half = 0; half < 2; ++half) {
                    int row = lane / 4, col = lane % 4 * 2 + half;
                    uint32_t value = transposed ? all[matrix * 8 + col]->row[row]
                                                : all[matrix * 8 + row]->row[col];
                    bits |= value << (16 * half);
                }
                all[lane]->registers[matrix] = bits;
            }
    });
}

void add_kernel(const char *name, void (*call)(void **));

template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(args[I])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void **args) {
    call_with(kernel, args, std::index_sequence_for<A...>{});
}
struct Registration {
    Registration(const char *name, void (*call)(void **)) { add_kernel(name, call); }
};

} // namespace emulated

#define REGISTER_KERNEL(name)                                                                      \
    static emulated::Registration registration_##name(                                             \
        #name, [](void **args) { emulated::call(name, args); });

#define threadIdx (emulated::fiber->thread)
#define blockIdx (emulated::block->index)
#define blockDim (emulated::block->block)
#define gridDim (emulated::block->grid)
#define DYNAMIC_SHARED(name) unsigned char *name = emulated::block->shared

inline void __syncthreads() {
    emulated::barrier();
}
inline void __syncwarp() {
    int nothing = 0;
    emulated::collective("__syncwarp", nothing, [](int **) {});
}
template <class T>
inline T __shfl_xor_sync(uint32_t, T value, int mask) {
    return emulated::shuffle("__shfl_xor_sync", value, emulated::fiber->lane ^ (uint32_t)mask);
}
template <class T>
inline T __shfl_sync(uint32_t, T value, int from) {
    return emulated::shuffle("__shfl_sync", value, (uint32_t)from);
}

inline uint32_t __ballot_sync(uint32_t, bool flag) {
    struct Vote {
        bool flag;
        uint32_t mask;
    } mine{flag, 0};
    emulated::collective("__ballot_sync", mine, [](Vote **all) {
        uint32_t mask = 0;
        for (int lane = 0; lane < 32; ++lane) mask |= (uint32_t)all[lane]->flag << lane;
        for (int lane = 0; lane < 32; ++lane) all[lane]->mask = mask;
    });
    return mine.mask;
}
// Rounded to nearest and never contracted; the build says -ffp-contract=off.
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __ddiv_rn(double a, double b) {
    return a / b;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
inline double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(uint32_t bits) {
    return __builtin_popcount(bits);
}
// Fibers run one at a time: nothing comes between.
template <class T>
inline T atomicAdd(T *at, T value) {
    T old = *at;
    *at = old + value;
    return old;
}

inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline void sincosf_portable(float x, float *sin, float *cos) {
    *sin = sinf(x);
    *cos = cosf(x);
}
#define sincosf sincosf_portable
inline uint32_t min(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
inline uint32_t max(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

struct half_t {
    uint16_t bits;
};
struct bf16_t {
    uint16_t bits;
};
inline float to_float(float x) {
    return x;
}
inline float to_float(half_t x) {
    return emulated::half_to_float(x.bits);
}
inline float to_float(bf16_t x) {
    return __uint_as_float((uint32_t)x.bits << 16);
}
inline half_t half_bits(uint16_t bits) {
    return {bits};
}
inline bf16_t bf16_bits(uint16_t bits) {
    return {bits};
}
inline uint16_t round_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float saturate_half(float x);
inline uint32_t pack_half(float low, float high) {
    return emulated::float_to_half(saturate_half(low)) |
           (uint32_t)emulated::float_to_half(saturate_half(high)) << 16;
}
inline uint32_t pack_bf16(float low, float high) {
    return round_bf16(low) | (uint32_t)round_bf16(high) << 16;
}
inline void store(float *at, float x) {
    *at = x;
}
inline void store(half_t *at, float x) {
    at->bits = emulated::float_to_half(saturate_half(x));
}
inline void store(bf16_t *at, float x) {
    at->bits = round_bf16(x);
}

inline void ldmatrix(uint32_t (&r)[4], const void *row) {
    emulated::load_matrices("ldmatrix", r, row, false);
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    emulated::load_matrices("ldmatrix.trans", r, row, true);
}
inline void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulated::mma("mma.f16", c, a, b0, b1,
                  [](uint16_t bits) { return emulated::half_to_float(bits); });
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulated::mma("mma.bf16", c, a, b0, b1,
                  [](uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); });
}
inline void copy_async(void *to, const void *from, uint32_t bytes) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16))
        emulated::fail("unaligned asynchronous copy", "copy_async");
    std::memset(to, 0xff, 16);
    emulated::fiber->copies.push_back({to, from, bytes, emulated::fiber->group});
}
inline void copy_commit() {
    ++emulated::fiber->group;
}
template <int N>
inline void copy_wait() {
    auto &copies = emulated::fiber->copies;
    size_t kept = 0;
    for (auto &copy : copies) {
        if (copy.group + N >= emulated::fiber->group) {
            copies[kept++] = copy;
            continue;
        }
        std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(static_cast<char *>(copy.to) + copy.bytes, 0, 16 - copy.bytes);
    }
    copies.resize(kept);
}
