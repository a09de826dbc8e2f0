// Kernels that write, move, rotate and copy slots of the cache.
//
//   split_qkv     fused rows [T, (H+2K)*D] to queries [T, H, D] and to slots: RMS norm per head
//   (optional), rotary
//                 position (GPT-NeoX halves), write of keys and values into pages. A warp per head
//                 of a row.
//   compact       kept slot i moves to slot i, its note with it. A block per head, 32 slots at a
//   time through shared memory: kept slots
//                 increase, so what a later step reads lies behind everything that was written.
//                 Scales of 8-bit slots move along.
//   rotate_keys   keys by delta * inv_freq. The angle is reduced in f64: positions reach millions,
//   f32 keeps 24 bits. read_slots, write_slots   between pages and f32 [n, D].
//   save_slots, load_slots   between pages and bytes: elements as they are stored. A block per
//   slot.
#include "common.cuh"

template <class T>
__device__ inline void split_qkv(const float *qkv, const float *cos, const float *sin,
                                 const float *q_norm, const float *k_norm, float eps,
                                 const Item *items, const uint32_t *owners, const uint32_t *tables,
                                 T *pages, float *q, uint32_t heads, uint32_t kv_heads,
                                 uint32_t dim) {
    uint32_t lane = threadIdx.x % 32, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32,
             t = blockIdx.x;
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
    float2 scale = {1.0f, 1.0f};
    auto rotated = [&](uint32_t i) {
        float a = x[i], b = x[i + half];
        if (weight != nullptr) {
            a = a * inverse * weight[i];
            b = b * inverse * weight[i + half];
        }
        float c = cos[(size_t)t * half + i], s = sin[(size_t)t * half + i];
        return make_float2(a * c - b * s, b * c + a * s);
    };
    if (head >= heads) {
        uint32_t owner = owners[t * kv_heads + (head - heads)];
        if (owner == NONE) return;
        const Item &item = items[owner];
        uint32_t slot = item.len + t - item.row;
        key = slot_key(pages, tables + item.table, slot, dim);
        value = key + SLOTS * dim;
        const float *from = row + (heads + kv_heads + item.kv_head) * dim;
        if (SCALED<T>) {
            float2 most = {0.0f, 0.0f};
            for (uint32_t i = lane; i < half; i += 32) {
                float2 pair = rotated(i);
                most.x = fmaxf(most.x, fmaxf(fabsf(pair.x), fabsf(pair.y)));
                most.y = fmaxf(most.y, fmaxf(fabsf(from[i]), fabsf(from[i + half])));
            }
            half_t of_key = scale_of(warp_max(most.x)), of_value = scale_of(warp_max(most.y));
            scale = make_float2(to_float(of_key), to_float(of_value));
            half_t *scales = slot_scales(pages, tables + item.table, slot, dim);
            if (lane == 0) scales[0] = of_key, scales[SLOTS] = of_value;
        }
        for (uint32_t i = lane; i < dim; i += 32) store_scaled(value + i, from[i], scale.y);
    }
    for (uint32_t i = lane; i < half; i += 32) {
        float2 pair = rotated(i);
        if (head < heads) {
            float *to = q + ((size_t)t * heads + head) * dim;
            to[i] = pair.x;
            to[i + half] = pair.y;
        } else {
            store_scaled(key + i, pair.x, scale.x);
            store_scaled(key + i + half, pair.y, scale.x);
        }
    }
}

// A thread moves a chunk of C, then the first 32 a note and two scales each; `bytes` are those of D
// elements. `counts`, `keeps`: see select.cu.
template <class C, class T>
__device__ inline void compact_slots(T *pages, uint2 *notes, const Item *items,
                                     const uint32_t *tables, const uint32_t *counts,
                                     const uint32_t *keeps, uint32_t bytes) {
    DYNAMIC_SHARED(shared);
    const Item item = items[blockIdx.x];
    const uint32_t *table = tables + item.table, *keep = keeps + item.output;
    uint32_t chunks = bytes / sizeof(C), kept = counts[2 * blockIdx.x], dim = bytes / sizeof(T);
    for (uint32_t first = counts[2 * blockIdx.x + 1]; first < kept; first += SLOTS) {
        uint32_t count = min(SLOTS, kept - first);
        for (uint32_t i = threadIdx.x; i < count * 2 * chunks; i += blockDim.x) {
            uint32_t slot = i / (2 * chunks), part = i / chunks % 2, chunk = i % chunks;
            const T *from = slot_key(pages, table, keep[first + slot], dim) + part * SLOTS * dim;
            reinterpret_cast<C *>(shared)[i] = reinterpret_cast<const C *>(from)[chunk];
        }
        uint2 moved = {0, 0};
        half_t scale[2] = {};
        if (threadIdx.x < count) {
            moved = *slot_note(notes, table, keep[first + threadIdx.x]);
            if (SCALED<T>) {
                const half_t *from = slot_scales(pages, table, keep[first + threadIdx.x], dim);
                scale[0] = from[0], scale[1] = from[SLOTS];
            }
        }
        __syncthreads();
        if (threadIdx.x < count) {
            *slot_note(notes, table, first + threadIdx.x) = moved;
            if (SCALED<T>) {
                half_t *to = slot_scales(pages, table, first + threadIdx.x, dim);
                to[0] = scale[0], to[SLOTS] = scale[1];
            }
        }
        for (uint32_t i = threadIdx.x; i < count * 2 * chunks; i += blockDim.x) {
            uint32_t slot = i / (2 * chunks), part = i / chunks % 2, chunk = i % chunks;
            T *to = slot_key(pages, table, first + slot, dim) + part * SLOTS * dim;
            reinterpret_cast<C *>(to)[chunk] = reinterpret_cast<const C *>(shared)[i];
        }
        __syncthreads();
    }
}

// Slots of 16-byte chunks; a row of integers has eight bytes at least.
#define COMPACT(NAME, C, T)                                                                        \
    extern "C" __global__ void compact_##NAME(T *pages, uint2 *notes, const Item *items,           \
                                              const uint32_t *tables, const uint32_t *counts,      \
                                              const uint32_t *keeps, uint32_t bytes) {             \
        compact_slots<C>(pages, notes, items, tables, counts, keeps, bytes);                       \
    }                                                                                              \
    REGISTER_KERNEL(compact_##NAME)

COMPACT(q8, uint2, eight_t)
COMPACT(f16, uint4, half_t)
COMPACT(f32, uint4, float)

template <class T>
__device__ inline void rotate_keys(T *pages, const Item *items, const uint32_t *tables,
                                   const float *deltas, const float *inv_freq, uint32_t dim) {
    DYNAMIC_SHARED(raw);
    __shared__ float partial[32];
    const Item item = items[blockIdx.y];
    // Of each thread's own elements.
    float2 *pairs = reinterpret_cast<float2 *>(raw);
    uint32_t half = dim / 2;
    for (uint32_t slot = blockIdx.x; slot < item.len; slot += gridDim.x) {
        float delta = deltas[item.extra + slot];
        // Stays as it is, bit by bit.
        if (delta == 0.0f) continue;
        T *key = slot_key(pages, tables + item.table, slot, dim);
        float before = read_scales(pages, tables + item.table, slot, dim).x, scale = 1.0f;
        auto rotated = [&](uint32_t i) {
            double angle = (double)delta * (double)inv_freq[i];
            double turns = rint(angle * 0.15915494309189535);
            float s, c;
            sincosf((float)(angle - turns * 6.283185307179586), &s, &c);
            float a = to_float(key[i]) * before, b = to_float(key[i + half]) * before;
            return make_float2(a * c - b * s, b * c + a * s);
        };
        float most = 0.0f;
        for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
            pairs[i] = rotated(i);
            most = fmaxf(most, fmaxf(fabsf(pairs[i].x), fabsf(pairs[i].y)));
        }
        if (SCALED<T>) {
            half_t of_key = scale_of(block_max(most, partial));
            scale = to_float(of_key);
            if (threadIdx.x == 0) *slot_scales(pages, tables + item.table, slot, dim) = of_key;
        }
        for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
            store_scaled(key + i, pairs[i].x, scale);
            store_scaled(key + i + half, pairs[i].y, scale);
        }
    }
}

template <class T>
__device__ inline void read_slots(const T *pages, const uint32_t *table, const uint32_t *slots,
                                  uint32_t dim, float *keys, float *values) {
    const T *key = slot_key(pages, table, slots[blockIdx.x], dim);
    float2 scale = read_scales(pages, table, slots[blockIdx.x], dim);
    for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) {
        keys[(size_t)blockIdx.x * dim + i] = to_float(key[i]) * scale.x;
        values[(size_t)blockIdx.x * dim + i] = to_float(key[SLOTS * dim + i]) * scale.y;
    }
}

template <class T>
__device__ inline void write_slots(T *pages, const uint32_t *table, uint32_t first, uint32_t dim,
                                   const float *keys, const float *values) {
    __shared__ float partial[32];
    T *key = slot_key(pages, table, first + blockIdx.x, dim);
    keys += (size_t)blockIdx.x * dim, values += (size_t)blockIdx.x * dim;
    float2 scale = {1.0f, 1.0f};
    if (SCALED<T>) {
        float2 most = {0.0f, 0.0f};
        for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x)
            most = make_float2(fmaxf(most.x, fabsf(keys[i])), fmaxf(most.y, fabsf(values[i])));
        half_t of_key = scale_of(block_max(most.x, partial)),
               of_value = scale_of(block_max(most.y, partial));
        scale = make_float2(to_float(of_key), to_float(of_value));
        half_t *scales = slot_scales(pages, table, first + blockIdx.x, dim);
        if (threadIdx.x == 0) scales[0] = of_key, scales[SLOTS] = of_value;
    }
    for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) {
        store_scaled(key + i, keys[i], scale.x);
        store_scaled(key + SLOTS * dim + i, values[i], scale.y);
    }
}

// Slots `first ..` of an item, `len` of them, in `output` and the bytes behind it: keys, values,
// scales of keys, scales of values, as StoredParts (kernels/src/stored.rs) has them.
template <class T>
__device__ inline void save_slots(const T *pages, const Item *items, const uint32_t *tables,
                                  uint32_t dim, unsigned char *out) {
    const Item item = items[blockIdx.y];
    size_t elements = (size_t)item.len * dim;
    T *keys = reinterpret_cast<T *>(out + item.output), *values = keys + elements;
    half_t *scales = reinterpret_cast<half_t *>(values + elements);
    for (uint32_t i = blockIdx.x; i < item.len; i += gridDim.x) {
        const T *key = slot_key(pages, tables + item.table, item.first + i, dim);
        for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
            keys[(size_t)i * dim + d] = key[d];
            values[(size_t)i * dim + d] = key[SLOTS * dim + d];
        }
        if (SCALED<T> && threadIdx.x == 0) {
            const half_t *from = slot_scales(pages, tables + item.table, item.first + i, dim);
            scales[i] = from[0], scales[item.len + i] = from[SLOTS];
        }
    }
}

template <class T>
__device__ inline void load_slots(T *pages, const Item *items, const uint32_t *tables, uint32_t dim,
                                  const unsigned char *from) {
    const Item item = items[blockIdx.y];
    size_t elements = (size_t)item.len * dim;
    const T *keys = reinterpret_cast<const T *>(from + item.output), *values = keys + elements;
    const half_t *scales = reinterpret_cast<const half_t *>(values + elements);
    for (uint32_t i = blockIdx.x; i < item.len; i += gridDim.x) {
        T *key = slot_key(pages, tables + item.table, item.first + i, dim);
        for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
            key[d] = keys[(size_t)i * dim + d];
            key[SLOTS * dim + d] = values[(size_t)i * dim + d];
        }
        if (SCALED<T> && threadIdx.x == 0) {
            half_t *to = slot_scales(pages, tables + item.table, item.first + i, dim);
            to[0] = scales[i], to[SLOTS] = scales[item.len + i];
        }
    }
}

#define SLOT_KERNELS(NAME, T)                                                                      \
    extern "C" __global__ void split_qkv_##NAME(                                                   \
        const float *qkv, const float *cos, const float *sin, const float *q_norm,                 \
        const float *k_norm, float eps, const Item *items, const uint32_t *owners,                 \
        const uint32_t *tables, T *pages, float *q, uint32_t heads, uint32_t kv_heads,             \
        uint32_t dim) {                                                                            \
        split_qkv(qkv, cos, sin, q_norm, k_norm, eps, items, owners, tables, pages, q, heads,      \
                  kv_heads, dim);                                                                  \
    }                                                                                              \
    REGISTER_KERNEL(split_qkv_##NAME)                                                              \
    extern "C" __global__ void rotate_keys_##NAME(T *pages, const Item *items,                     \
                                                  const uint32_t *tables, const float *deltas,     \
                                                  const float *inv_freq, uint32_t dim) {           \
        rotate_keys(pages, items, tables, deltas, inv_freq, dim);                                  \
    }                                                                                              \
    REGISTER_KERNEL(rotate_keys_##NAME)                                                            \
    extern "C" __global__ void read_slots_##NAME(const T *pages, const uint32_t *table,            \
                                                 const uint32_t *slots, uint32_t dim, float *keys, \
                                                 float *values) {                                  \
        read_slots(pages, table, slots, dim, keys, values);                                        \
    }                                                                                              \
    REGISTER_KERNEL(read_slots_##NAME)                                                             \
    extern "C" __global__ void write_slots_##NAME(T *pages, const uint32_t *table, uint32_t first, \
                                                  uint32_t dim, const float *keys,                 \
                                                  const float *values) {                           \
        write_slots(pages, table, first, dim, keys, values);                                       \
    }                                                                                              \
    REGISTER_KERNEL(write_slots_##NAME)                                                            \
    extern "C" __global__ void save_slots_##NAME(const T *pages, const Item *items,                \
                                                 const uint32_t *tables, uint32_t dim,             \
                                                 unsigned char *out) {                             \
        save_slots(pages, items, tables, dim, out);                                                \
    }                                                                                              \
    REGISTER_KERNEL(save_slots_##NAME)                                                             \
    extern "C" __global__ void load_slots_##NAME(T *pages, const Item *items,                      \
                                                 const uint32_t *tables, uint32_t dim,             \
                                                 const unsigned char *from) {                      \
        load_slots(pages, items, tables, dim, from);                                               \
    }                                                                                              \
    REGISTER_KERNEL(load_slots_##NAME)

SLOT_KERNELS(q8, eight_t)
SLOT_KERNELS(f16, half_t)
SLOT_KERNELS(f32, float)
