// Attention of many query rows over [centroids | slots in pages | causal tail] in one softmax:
// prefill.
//
//   out[m] = sum_j p[m, j] v[j],  p = softmax(scale * <q[m], k[j]> + bias[j]) over what row m sees;
//   bias: ln n of a centroid that stands for n entries (computed from the count, so that none is no
//   centroid), 0 of a slot q, out: [T, H, D] f32;  slots: f16;  D up to 128 and a multiple of 8
//   (padded to DP with zeros in shared memory)
//
// A block of four warps takes 64 query rows of one KV head (16 a warp), tiles of 64 slots (two
// pages) arrive by asynchronous copies in two stages while the tile before is multiplied.
// Probabilities stay in registers: the accumulator layout of the first product is the operand
// layout of the second (FlashAttention-2, Dao 2023). Queries are rounded to f16 after scaling,
// probabilities to f16, sums are f32. Bytes: keys and values once for each 64 query rows, from the
// L2. Tiles before any row's window are not read.
#include "attention.cuh"

template <int DP, class T>
__device__ inline void attention_prefill(const AttentionArgs &args, const uint2 *tiles) {
    DYNAMIC_SHARED(raw);
    half_t *shared = reinterpret_cast<half_t *>(raw);
    constexpr uint32_t KEYS = 64, PART = KEYS * ROW<DP>;
    const Item item = args.items[tiles[blockIdx.x].x];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = args.heads / args.kv_heads;
    uint32_t first_m = tiles[blockIdx.x].y * 64, m = first_m + warp * 16 + lane / 4;
    uint32_t queries[DP / 16][4];
    load_queries<DP>(args, item, first_m + warp * 16, queries);
    Visible rows[2] = {visible(args, item, m), visible(args, item, m + 8)};

    // Slots that any row of the block sees.
    uint32_t last_i = min(item.rows, (first_m + 63) / group + 1) - 1, begin = NONE;
    for (uint32_t i = first_m / group; i <= last_i; ++i)
        begin = min(begin, visible(args, item, i * group).first);
    uint32_t end = item.len - item.rows + last_i + 1;
    begin = begin / KEYS * KEYS;
    uint32_t memory = (item.count + KEYS - 1) / KEYS,
             count = memory + (end - begin + KEYS - 1) / KEYS;

    auto load = [&](uint32_t tile) {
        half_t *keys = shared + tile % 2 * 2 * PART, *values = keys + PART;
        for (uint32_t page = 0; page < 2; ++page) {
            uint32_t at = page * SLOTS * ROW<DP>;
            if (tile < memory)
                load_centroids<DP>(args, item, tile * KEYS + page * SLOTS, keys + at, values + at,
                                   threadIdx.x, 128);
            else
                load_page<DP>(static_cast<const T *>(args.pages), args, item,
                              begin + (tile - memory) * KEYS + page * SLOTS, keys + at, values + at,
                              threadIdx.x, 128);
        }
    };
    Softmax<DP> softmax;
    softmax.clear();
    load(0);
    copy_commit();
    for (uint32_t tile = 0; tile < count; ++tile) {
        if (tile + 1 < count) load(tile + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const half_t *keys = shared + tile % 2 * 2 * PART;
        if (tile < memory) {
            const float *counts = args.centroids[item.extra] + (size_t)2 * item.count * args.dim;
            softmax.template step<4>(
                queries, keys, keys + PART, [&](uint32_t column, int, float logit) {
                    uint32_t r = tile * KEYS + column;
                    return r < item.count ? logit + log2f(counts[r]) : -INFINITY;
                });
        } else {
            uint32_t base = begin + (tile - memory) * KEYS;
            softmax.template step<4>(
                queries, keys, keys + PART, [&](uint32_t column, int half, float logit) {
                    uint32_t slot = base + column;
                    return slot >= rows[half].first && slot < rows[half].end ? logit : -INFINITY;
                });
        }
        __syncthreads();
    }
    copy_wait<0>();
    softmax.finish();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t row = m + half * 8;
        if (row >= item.rows * group) continue;
        float *out = args.out + ((size_t)(item.row + row / group) * args.heads +
                                 item.kv_head * group + row % group) *
                                    args.dim;
        float inverse = 1.0f / softmax.sum[half];
#pragma unroll
        for (uint32_t tile = 0; tile < DP / 8; ++tile)
            if (tile * 8 < args.dim)
                *reinterpret_cast<float2 *>(out + tile * 8 + lane % 4 * 2) =
                    make_float2(softmax.values[tile][2 * half] * inverse,
                                softmax.values[tile][2 * half + 1] * inverse);
    }
}

#define PREFILL(DP, NAME, T, BLOCKS)                                                               \
    extern "C" __global__ void __launch_bounds__ BLOCKS attention_prefill##NAME(                   \
        ATTENTION_PARAMETERS, const uint2 *tiles) {                                                \
        AttentionArgs args = ATTENTION_ARGS;                                                       \
        attention_prefill<DP, T>(args, tiles);                                                     \
    }                                                                                              \
    REGISTER_KERNEL(attention_prefill##NAME)

PREFILL(16, _16, half_t, (128))
PREFILL(16, _16_q8, eight_t, (128, 2))
PREFILL(32, _32, half_t, (128))
PREFILL(32, _32_q8, eight_t, (128, 2))
PREFILL(64, _64, half_t, (128))
PREFILL(64, _64_q8, eight_t, (128, 2))
PREFILL(96, _96, half_t, (128))
PREFILL(96, _96_q8, eight_t, (128, 2))
PREFILL(128, _128, half_t, (128))
PREFILL(128, _128_q8, eight_t, (128, 2))
