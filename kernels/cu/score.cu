// Scores of slots by what lies with them, and the notes that policies keep there.
//
//   note            note of slot len + i = {values[row + i, kv_head], position + i} values [T,
//   width]
//                   or, of two numbers, {f16 of that | f16 of values[row + i, second] << 16,
//                   position + i}
//   score_notes     note + rate * ln(1 + (at - position) / scale), the note alone without a rate;
//   of two numbers
//                   max(first, second + rate * (at - position) / scale)
//   score_keys      -|k|, or -<k, m> / (|k| |m|) with m = sum_j k_j / |k_j| (KNorm; KeyDiff)
//   read_notes      notes of a head, in order
//   write_notes     notes of a head, in order, with the positions of its slots
//
// Sums run from the first on, products and sums rounded apart, as in kernels/src/score.rs: scores
// of keys have the CPU's bits, those with a logarithm differ by its last bits.
//
// A note is 8 bytes of a slot: value, then position. Slots of page p have notes 32 p and on. Notes:
// a thread per row. Scores by notes: a thread per slot. Keys: a block per head, a thread per slot,
// but for the mean direction, a thread per dimension over 256 slots at a time, whose scales lie in
// shared memory. Versions tried: none yet, no GPU has run it.
#include "common.cuh"

constexpr uint32_t SCORE_THREADS = 256;
constexpr float LEAST_NORM = 1e-12f;

// `len`: slots before those of the rows; `extra`: position of the first row; `output`: column of a
// second number, or NONE.
extern "C" __global__ void note(const float *values, uint32_t width, const Item *items,
                                const uint32_t *tables, uint2 *notes) {
    const Item item = items[blockIdx.y];
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < item.rows;
         i += gridDim.x * blockDim.x) {
        const float *row = values + (size_t)(item.row + i) * width;
        uint32_t value = __float_as_uint(row[item.kv_head]);
        if (item.output != NONE) value = pack_half(row[item.kv_head], row[item.output]);
        *slot_note(notes, tables + item.table, item.len + i) = {value, item.extra + i};
    }
}
REGISTER_KERNEL(note)

extern "C" __global__ void read_notes(const uint2 *notes, const uint32_t *table, uint32_t len,
                                      uint32_t *values) {
    uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot < len) values[slot] = slot_note(notes, table, slot)->x;
}
REGISTER_KERNEL(read_notes)

extern "C" __global__ void write_notes(uint2 *notes, const uint32_t *table, uint32_t len,
                                       const uint32_t *values, const uint32_t *positions) {
    uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot < len) *slot_note(notes, table, slot) = {values[slot], positions[slot]};
}
REGISTER_KERNEL(write_notes)

// `extra`: the item's {rate, scale}; `flags`: 1 for notes of two numbers; `output`: its first
// score.
extern "C" __global__ void score_notes(const uint2 *notes, const Item *items,
                                       const uint32_t *tables, const float2 *rates, uint32_t at,
                                       float *scores) {
    const Item item = items[blockIdx.y];
    const float2 rate = rates[item.extra];
    for (uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x; slot < item.len;
         slot += gridDim.x * blockDim.x) {
        const uint2 note = *slot_note(notes, tables + item.table, slot);
        float value = __uint_as_float(note.x), age = (float)(at > note.y ? at - note.y : 0u);
        if (item.flags) {
            float second = to_float(half_bits(note.x >> 16)),
                  passed = __fmul_rn(rate.x, __fdiv_rn(age, rate.y));
            value = fmaxf(to_float(half_bits(note.x & 0xffff)), __fadd_rn(second, passed));
        } else if (rate.x != 0.0f) {
            value = __fadd_rn(value, __fmul_rn(rate.x, log1pf(__fdiv_rn(age, rate.y))));
        }
        scores[item.output + slot] = value;
    }
}
REGISTER_KERNEL(score_notes)

template <class T>
__device__ inline float key_norm(const T *key, float scale, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t d = 0; d < dim; ++d) {
        float x = to_float(key[d]) * scale;
        sum = __fadd_rn(sum, __fmul_rn(x, x));
    }
    return __fsqrt_rn(sum);
}

// `flags`: 1 for the direction, 0 for the norm. Shared: the mean direction [D].
template <class T>
__device__ inline void score_keys(const T *pages, const Item *items, const uint32_t *tables,
                                  uint32_t dim, float *scores) {
    DYNAMIC_SHARED(raw);
    __shared__ float scales[SCORE_THREADS];
    const Item item = items[blockIdx.x];
    float *mean = reinterpret_cast<float *>(raw), *out = scores + item.output;
    const uint32_t *table = tables + item.table;
    for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) mean[d] = 0.0f;
    for (uint32_t first = 0; first < item.len; first += SCORE_THREADS) {
        uint32_t slot = first + threadIdx.x, count = min(SCORE_THREADS, item.len - first);
        if (slot < item.len) {
            float scale = read_scales(pages, table, slot, dim).x;
            float norm = key_norm(slot_key(pages, table, slot, dim), scale, dim);
            out[slot] = item.flags ? norm : -norm;
            scales[threadIdx.x] = __fdiv_rn(1.0f, fmaxf(norm, LEAST_NORM));
        }
        __syncthreads();
        for (uint32_t d = threadIdx.x; item.flags && d < dim; d += blockDim.x) {
            float sum = mean[d];
            for (uint32_t i = 0; i < count; ++i) {
                float x = to_float(slot_key(pages, table, first + i, dim)[d]);
                x *= read_scales(pages, table, first + i, dim).x;
                sum = __fadd_rn(sum, __fmul_rn(x, scales[i]));
            }
            mean[d] = sum;
        }
        __syncthreads();
    }
    if (!item.flags) return;
    float length = fmaxf(key_norm(mean, 1.0f, dim), LEAST_NORM);
    for (uint32_t slot = threadIdx.x; slot < item.len; slot += blockDim.x) {
        const T *key = slot_key(pages, table, slot, dim);
        float dot = 0.0f, scale = read_scales(pages, table, slot, dim).x;
        for (uint32_t d = 0; d < dim; ++d)
            dot = __fadd_rn(dot, __fmul_rn(to_float(key[d]) * scale, mean[d]));
        out[slot] = __fdiv_rn(-dot, __fmul_rn(fmaxf(out[slot], LEAST_NORM), length));
    }
}

#define SCORE_KERNELS(NAME, T)                                                                     \
    extern "C" __global__ void __launch_bounds__(SCORE_THREADS) score_keys_##NAME(                 \
        const T *pages, const Item *items, const uint32_t *tables, uint32_t dim, float *scores) {  \
        score_keys(pages, items, tables, dim, scores);                                             \
    }                                                                                              \
    REGISTER_KERNEL(score_keys_##NAME)

SCORE_KERNELS(q8, eight_t)
SCORE_KERNELS(f16, half_t)
SCORE_KERNELS(f32, float)
