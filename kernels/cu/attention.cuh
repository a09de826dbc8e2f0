// What the two tensor-core attention kernels share: tiles of keys and values, and one step of the
// online softmax.
//
// Query rows of a KV head are pairs (token row i, query head g), row m = i * G + g, so all G heads
// of a group read the same keys and values once. Logits are in units of log2: the scale carries
// log2(e), a centroid of n entries has log2(n) added.
#pragma once
#include "common.cuh"

struct AttentionArgs {
    const Item *items;
    const uint32_t *tables;
    const uint32_t *first_visible;
    // For each item keys [R, D], values [R, D], counts [R]; 0: no centroid.
    const float *const *centroids;
    const void *pages; // of the kernel's element type
    const float *q;    // [T, H, D]
    float *out;        // [T, H, D]
    uint32_t heads, kv_heads, dim;
    float scale; // log2(e) / sqrt(D)
};

// A tile's row in shared memory: 8 halves more than D, so that the eight rows of a fragment lie in
// different banks.
template <int DP>
constexpr uint32_t ROW = DP + 8;

// Query fragments of 16 rows from `first`, scaled; zeros beyond the item's rows and beyond D.
template <int DP>
__device__ inline void load_queries(const AttentionArgs &args, const Item &item, uint32_t first,
                                    uint32_t (&fragments)[DP / 16][4]) {
    uint32_t lane = threadIdx.x % 32, group = args.heads / args.kv_heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t m = first + lane / 4 + half * 8;
        bool inside = m < item.rows * group;
        size_t row = inside ? item.row + m / group : item.row,
               head = item.kv_head * group + (inside ? m % group : 0);
        const float *q = args.q + (row * args.heads + head) * args.dim;
#pragma unroll
        for (int k = 0; k < DP / 16; ++k)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                uint32_t d = k * 16 + side * 8 + lane % 4 * 2;
                bool valid = inside && d < args.dim;
                float2 pair =
                    valid ? *reinterpret_cast<const float2 *>(q + d) : make_float2(0.0f, 0.0f);
                fragments[k][half + 2 * side] = pack_half(pair.x * args.scale, pair.y * args.scale);
            }
    }
}

// Rows of one page, or zeros: keys to `to`, values `rows` rows further. `threads` of them, this is
// number `thread`.
template <int DP>
__device__ inline void load_page(const half_t *pages, const AttentionArgs &args, const Item &item,
                                 uint32_t first_slot, half_t *keys, half_t *values, uint32_t thread,
                                 uint32_t threads) {
    constexpr uint32_t CHUNKS = DP / 8;
    bool exists = first_slot < item.len;
    const half_t *page = pages;
    if (exists) page = slot_key(pages, args.tables + item.table, first_slot, args.dim);
    for (uint32_t i = thread; i < SLOTS * CHUNKS; i += threads) {
        uint32_t row = i / CHUNKS, d = i % CHUNKS * 8;
        // A page's slots beyond the last are zero or stale, and finite: halves saturate.
        bool inside = exists && d < args.dim;
        const half_t *from = page + (inside ? (size_t)row * args.dim + d : 0);
        copy_async(keys + row * ROW<DP> + d, from, inside ? 16 : 0);
        copy_async(values + row * ROW<DP> + d, inside ? from + (size_t)SLOTS * args.dim : page,
                   inside ? 16 : 0);
    }
}

// Halves of one row's eight integers, from `at` on.
__device__ inline uint4 scale_eight(const eight_t *at, float scale) {
    uint2 words = *reinterpret_cast<const uint2 *>(at);
    auto element = [&](uint32_t word, uint32_t i) {
        return (float)(eight_t)(word >> 8 * i & 0xff) * scale;
    };
    auto pair = [&](uint32_t word, uint32_t i) {
        return pack_half(element(word, i), element(word, i + 1));
    };
    return make_uint4(pair(words.x, 0), pair(words.x, 2), pair(words.y, 0), pair(words.y, 2));
}

// The same for pages of integers: they become halves on their way, rounded once, so these copies
// are not asynchronous.
template <int DP>
__device__ inline void load_page(const eight_t *pages, const AttentionArgs &args, const Item &item,
                                 uint32_t first_slot, half_t *keys, half_t *values, uint32_t thread,
                                 uint32_t threads) {
    constexpr uint32_t CHUNKS = DP / 8;
    bool exists = first_slot < item.len;
    const uint32_t *table = args.tables + item.table;
    for (uint32_t i = thread; i < SLOTS * CHUNKS; i += threads) {
        uint32_t row = i / CHUNKS, d = i % CHUNKS * 8;
        uint4 key = make_uint4(0, 0, 0, 0), value = key;
        if (exists && d < args.dim) {
            // Slots beyond the last are in the same page.
            const eight_t *from =
                slot_key(pages, table, first_slot, args.dim) + (size_t)row * args.dim + d;
            const half_t *scales = slot_scales(pages, table, first_slot, args.dim) + row;
            key = scale_eight(from, to_float(scales[0]));
            value = scale_eight(from + (size_t)SLOTS * args.dim, to_float(scales[SLOTS]));
        }
        *reinterpret_cast<uint4 *>(keys + row * ROW<DP> + d) = key;
        *reinterpret_cast<uint4 *>(values + row * ROW<DP> + d) = value;
    }
}

// 32 centroids from `first`, rounded to halves.
template <int DP>
__device__ inline void load_centroids(const AttentionArgs &args, const Item &item, uint32_t first,
                                      half_t *keys, half_t *values, uint32_t thread,
                                      uint32_t threads) {
    const float *all = args.centroids[item.extra];
    for (uint32_t i = thread; i < SLOTS * DP / 2; i += threads) {
        uint32_t row = i / (DP / 2), d = i % (DP / 2) * 2;
        bool inside = first + row < item.count && d < args.dim;
        const float *key = all + (size_t)(inside ? first + row : 0) * args.dim + (inside ? d : 0);
        const float *value = key + (size_t)item.count * args.dim;
        *reinterpret_cast<uint32_t *>(keys + row * ROW<DP> + d) =
            inside ? pack_half(key[0], key[1]) : 0u;
        *reinterpret_cast<uint32_t *>(values + row * ROW<DP> + d) =
            inside ? pack_half(value[0], value[1]) : 0u;
    }
}

// Running maximum, sum and weighted values of 16 query rows in one warp; a lane has rows lane / 4
// and lane / 4 + 8.
template <int DP>
struct Softmax {
    float most[2];
    float sum[2];
    float values[DP / 8][4];

    __device__ inline void clear() {
#pragma unroll
        for (int i = 0; i < 2; ++i) most[i] = -INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int tile = 0; tile < DP / 8; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) values[tile][i] = 0.0f;
    }

    // Adds 16 * N keys of a tile. `mask(column, half, logit)` gives the logit of a column for row
    // half, or -infinity.
    template <int N, class Mask>
    __device__ inline void step(const uint32_t (&queries)[DP / 16][4], const half_t *keys,
                                const half_t *stored, Mask mask) {
        uint32_t lane = threadIdx.x % 32;
        float logits[2 * N][4] = {};
#pragma unroll
        for (int k = 0; k < DP / 16; ++k)
#pragma unroll
            for (int pair = 0; pair < N; ++pair) {
                uint32_t b[4];
                ldmatrix(b, keys + (pair * 16 + lane / 16 * 8 + lane % 8) * ROW<DP> + k * 16 +
                                lane / 8 % 2 * 8);
                mma_half(logits[2 * pair], queries[k], b[0], b[1]);
                mma_half(logits[2 * pair + 1], queries[k], b[2], b[3]);
            }
        float next[2] = {most[0], most[1]};
#pragma unroll
        for (int tile = 0; tile < 2 * N; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                logits[tile][i] = mask(tile * 8 + lane % 4 * 2 + i % 2, i / 2, logits[tile][i]);
                next[i / 2] = fmaxf(next[i / 2], logits[tile][i]);
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            next[half] = fmaxf(next[half], __shfl_xor_sync(FULL, next[half], 1));
            next[half] = fmaxf(next[half], __shfl_xor_sync(FULL, next[half], 2));
            // A row that has seen nothing yet keeps zeros instead of NaN.
            float base = next[half] == -INFINITY ? 0.0f : next[half],
                  factor = exp2f(most[half] - base);
            most[half] = next[half];
            next[half] = base;
            sum[half] *= factor;
#pragma unroll
            for (int tile = 0; tile < DP / 8; ++tile) {
                values[tile][2 * half] *= factor;
                values[tile][2 * half + 1] *= factor;
            }
        }
#pragma unroll
        for (int tile = 0; tile < 2 * N; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                logits[tile][i] = exp2f(logits[tile][i] - next[i / 2]);
                sum[i / 2] += logits[tile][i];
            }
#pragma unroll
        for (int k = 0; k < N; ++k) {
            uint32_t a[4] = {pack_half(logits[2 * k][0], logits[2 * k][1]),
                             pack_half(logits[2 * k][2], logits[2 * k][3]),
                             pack_half(logits[2 * k + 1][0], logits[2 * k + 1][1]),
                             pack_half(logits[2 * k + 1][2], logits[2 * k + 1][3])};
#pragma unroll
            for (int d = 0; d < DP / 16; ++d) {
                uint32_t b[4];
                ldmatrix_transposed(b, stored + (k * 16 + lane % 16) * ROW<DP> + d * 16 +
                                           lane / 16 * 8);
                mma_half(values[2 * d], a, b[0], b[1]);
                mma_half(values[2 * d + 1], a, b[2], b[3]);
            }
        }
    }

    // Sums over the four lanes that share a row.
    __device__ inline void finish() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            sum[half] += __shfl_xor_sync(FULL, sum[half], 1);
            sum[half] += __shfl_xor_sync(FULL, sum[half], 2);
        }
    }
};

// What one query row sees: slots first .. end.
struct Visible {
    uint32_t first, end;
};

__device__ inline Visible visible(const AttentionArgs &args, const Item &item, uint32_t m) {
    uint32_t i = m / (args.heads / args.kv_heads);
    if (i >= item.rows) return {0, 0};
    return {item.first == NONE ? 0 : args.first_visible[item.first + i],
            item.len - item.rows + i + 1};
}

#define ATTENTION_PARAMETERS                                                                       \
    const Item *items, const uint32_t *tables, const uint32_t *first_visible,                      \
        const float *const *centroids, const void *pages, const float *q, float *out,              \
        uint32_t heads, uint32_t kv_heads, uint32_t dim, float scale
#define ATTENTION_ARGS                                                                             \
    {items, tables, first_visible, centroids, pages, q, out, heads, kv_heads, dim, scale}
