// Kernels that write, move, rotate and copy slots of the cache.
//
//   split_qkv     fused rows [T, (H+2K)*D] to queries [T, H, D] and to slots: RMS norm per head (optional), rotary
//                 position (GPT-NeoX halves), write of keys and values into pages. A warp per head of a row.
//   compact       kept slot i moves to slot i, its note with it. A block per head, 32 slots at a time through shared memory: kept slots
//                 increase, so what a later step reads lies behind everything that was written.
//   rotate_keys   keys by delta * inv_freq. The angle is reduced in f64: positions reach millions, f32 keeps 24 bits.
//   read_slots, write_slots   between pages and f32 [n, D].
#include "common.cuh"

template <class T>
__device__ inline void split_qkv(const float *qkv, const float *cos, const float *sin, const float *q_norm,
                                 const float *k_norm, float eps, const Item *items, const uint32_t *owners,
                                 const uint32_t *tables, T *pages, float *q, uint32_t heads, uint32_t kv_heads,
                                 uint32_t dim) {
    uint32_t lane = threadIdx.x % 32, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, t = blockIdx.x;
    if (head >= heads + kv_heads) return;
    const float *row = qkv + (size_t)t * (heads + 2 * kv_heads) * dim;
    const float *x = row + head * dim;
    const float *weight = head < heads ? q_norm : k_norm;
    uint32_t half = dim / 2;
    float inverse = 1.0f;
    if (weight != nullptr) {
        float squares = 0.0f;
        for (uint32_t i = lane; i < dim; i += 32) squares += x[i] * x[i];
        inverse = 1.0f / sqrtf(warp_sum(squares) / (float)dim + eps);
    }
    T *key = nullptr, *value = nullptr;
    if (head >= heads) {
        uint32_t owner = owners[t * kv_heads + (head - heads)];
        if (owner == NONE) return;
        const Item &item = items[owner];
        key = slot_key(pages, tables + item.table, item.len + t - item.row, dim);
        value = key + SLOTS * dim;
        const float *from = row + (heads + kv_heads + item.kv_head) * dim;
        for (uint32_t i = lane; i < dim; i += 32) store(value + i, from[i]);
    }
    for (uint32_t i = lane; i < half; i += 32) {
        float a = x[i], b = x[i + half];
        if (weight != nullptr) {
            a = a * inverse * weight[i];
            b = b * inverse * weight[i + half];
        }
        float c = cos[(size_t)t * half + i], s = sin[(size_t)t * half + i];
        float low = a * c - b * s, high = b * c + a * s;
        if (head < heads) {
            float *to = q + ((size_t)t * heads + head) * dim;
            to[i] = low;
            to[i + half] = high;
        } else {
            store(key + i, low);
            store(key + i + half, high);
        }
    }
}

// A thread moves 16 bytes, then the first 32 a note each; `bytes` are those of D elements. `counts`, `keeps`: see select.cu.
extern "C" __global__ void compact(unsigned char *pages, uint2 *notes, const Item *items, const uint32_t *tables,
                                   const uint32_t *counts, const uint32_t *keeps, uint32_t bytes) {
    DYNAMIC_SHARED(shared);
    const Item item = items[blockIdx.x];
    const uint32_t *table = tables + item.table, *keep = keeps + item.output;
    uint32_t chunks = bytes / 16, kept = counts[2 * blockIdx.x];
    for (uint32_t first = counts[2 * blockIdx.x + 1]; first < kept; first += SLOTS) {
        uint32_t count = min(SLOTS, kept - first);
        for (uint32_t i = threadIdx.x; i < count * 2 * chunks; i += blockDim.x) {
            uint32_t slot = i / (2 * chunks), part = i / chunks % 2, chunk = i % chunks;
            const unsigned char *from = slot_key(pages, table, keep[first + slot], bytes) + part * SLOTS * bytes;
            reinterpret_cast<uint4 *>(shared)[i] = reinterpret_cast<const uint4 *>(from)[chunk];
        }
        uint2 moved = {0, 0};
        if (threadIdx.x < count) moved = *slot_note(notes, table, keep[first + threadIdx.x]);
        __syncthreads();
        if (threadIdx.x < count) *slot_note(notes, table, first + threadIdx.x) = moved;
        for (uint32_t i = threadIdx.x; i < count * 2 * chunks; i += blockDim.x) {
            uint32_t slot = i / (2 * chunks), part = i / chunks % 2, chunk = i % chunks;
            unsigned char *to = slot_key(pages, table, first + slot, bytes) + part * SLOTS * bytes;
            reinterpret_cast<uint4 *>(to)[chunk] = reinterpret_cast<const uint4 *>(shared)[i];
        }
        __syncthreads();
    }
}
REGISTER_KERNEL(compact)

template <class T>
__device__ inline void rotate_keys(T *pages, const Item *items, const uint32_t *tables, const float *deltas,
                                   const float *inv_freq, uint32_t dim) {
    const Item item = items[blockIdx.y];
    uint32_t half = dim / 2;
    for (uint32_t slot = blockIdx.x; slot < item.len; slot += gridDim.x) {
        float delta = deltas[item.extra + slot];
        // Stays as it is, bit by bit.
        if (delta == 0.0f) continue;
        T *key = slot_key(pages, tables + item.table, slot, dim);
        for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
            double angle = (double)delta * (double)inv_freq[i];
            double turns = rint(angle * 0.15915494309189535);
            float s, c;
            sincosf((float)(angle - turns * 6.283185307179586), &s, &c);
            float a = to_float(key[i]), b = to_float(key[i + half]);
            store(key + i, a * c - b * s);
            store(key + i + half, b * c + a * s);
        }
    }
}

template <class T>
__device__ inline void read_slots(const T *pages, const uint32_t *table, const uint32_t *slots, uint32_t dim,
                                  float *keys, float *values) {
    const T *key = slot_key(pages, table, slots[blockIdx.x], dim);
    for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) {
        keys[(size_t)blockIdx.x * dim + i] = to_float(key[i]);
        values[(size_t)blockIdx.x * dim + i] = to_float(key[SLOTS * dim + i]);
    }
}

template <class T>
__device__ inline void write_slots(T *pages, const uint32_t *table, uint32_t first, uint32_t dim, const float *keys,
                                   const float *values) {
    T *key = slot_key(pages, table, first + blockIdx.x, dim);
    for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) {
        store(key + i, keys[(size_t)blockIdx.x * dim + i]);
        store(key + SLOTS * dim + i, values[(size_t)blockIdx.x * dim + i]);
    }
}

#define SLOT_KERNELS(NAME, T)                                                                                          \
    extern "C" __global__ void split_qkv_##NAME(                                                                       \
        const float *qkv, const float *cos, const float *sin, const float *q_norm, const float *k_norm, float eps,     \
        const Item *items, const uint32_t *owners, const uint32_t *tables, T *pages, float *q, uint32_t heads,         \
        uint32_t kv_heads, uint32_t dim) {                                                                             \
        split_qkv(qkv, cos, sin, q_norm, k_norm, eps, items, owners, tables, pages, q, heads, kv_heads, dim);          \
    }                                                                                                                  \
    REGISTER_KERNEL(split_qkv_##NAME)                                                                                  \
    extern "C" __global__ void rotate_keys_##NAME(T *pages, const Item *items, const uint32_t *tables,                 \
                                                  const float *deltas, const float *inv_freq, uint32_t dim) {          \
        rotate_keys(pages, items, tables, deltas, inv_freq, dim);                                                      \
    }                                                                                                                  \
    REGISTER_KERNEL(rotate_keys_##NAME)                                                                                \
    extern "C" __global__ void read_slots_##NAME(const T *pages, const uint32_t *table, const uint32_t *slots,         \
                                                 uint32_t dim, float *keys, float *values) {                           \
        read_slots(pages, table, slots, dim, keys, values);                                                            \
    }                                                                                                                  \
    REGISTER_KERNEL(read_slots_##NAME)                                                                                 \
    extern "C" __global__ void write_slots_##NAME(T *pages, const uint32_t *table, uint32_t first, uint32_t dim,       \
                                                  const float *keys, const float *values) {                            \
        write_slots(pages, table, first, dim, keys, values);                                                           \
    }                                                                                                                  \
    REGISTER_KERNEL(write_slots_##NAME)

SLOT_KERNELS(f16, half_t)
SLOT_KERNELS(f32, float)
