// Attention of few query rows (rows * G at most 16) over [centroids | slots]: decode.
//
// Formula and types of attention_prefill.cu. Bound by reading every key and value once, so the
// slots of a head are split over blocks of SPLIT slots, and inside a block over four warps that
// take pages in turn, each with its own two stages of asynchronous copies and no barrier of the
// block until the end. All query heads of the group share what was loaded: they are rows of one
// tensor-core tile. The warps' results merge in shared memory, those of the splits in
// attention_merge, both in a fixed order: m = max m_i, out = sum exp2(m_i - m) o_i / sum exp2(m_i -
// m) l_i. A split is a function of the slots alone, so the order of sums does not depend on the
// batch.
#include "attention.cuh"

constexpr uint32_t SPLIT = 512; // Backend: kernels/src/cuda/backend.rs

// splits: {item, first slot, partial result or NONE, 1 when the split reads the centroids}
// partial results: [16][DP] weighted values, [16] maxima, [16] sums
template <int DP, class T>
__device__ inline void attention_decode(const AttentionArgs &args, const uint4 *splits,
                                        float *partials) {
    DYNAMIC_SHARED(raw);
    constexpr uint32_t PART = SLOTS * ROW<DP>;
    const uint4 split = splits[blockIdx.x];
    if (split.x == NONE) return; // the list ended before: kernels/src/cuda/attention/tiles.rs
    const Item item = args.items[split.x];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = args.heads / args.kv_heads;
    half_t *shared = reinterpret_cast<half_t *>(raw) + warp * 4 * PART;
    uint32_t queries[DP / 16][4];
    load_queries<DP>(args, item, 0, queries);
    Visible rows[2] = {visible(args, item, lane / 4), visible(args, item, lane / 4 + 8)};
    uint32_t end = min(item.len, split.y + SPLIT);
    uint32_t memory = split.w ? (item.count + SLOTS - 1) / SLOTS : 0;
    uint32_t count = memory + (end - split.y + SLOTS - 1) / SLOTS;

    auto load = [&](uint32_t unit) {
        half_t *keys = shared + unit / 4 % 2 * 2 * PART;
        if (unit < memory)
            load_centroids<DP>(args, item, unit * SLOTS, keys, keys + PART, lane, 32);
        else
            load_page<DP>(static_cast<const T *>(args.pages), args, item,
                          split.y + (unit - memory) * SLOTS, keys, keys + PART, lane, 32);
    };
    Softmax<DP> softmax;
    softmax.clear();
    if (warp < count) load(warp);
    copy_commit();
    for (uint32_t unit = warp; unit < count; unit += 4) {
        if (unit + 4 < count) load(unit + 4);
        copy_commit();
        copy_wait<1>();
        __syncwarp();
        const half_t *keys = shared + unit / 4 % 2 * 2 * PART;
        if (unit < memory) {
            const float *counts = args.centroids[item.extra] + (size_t)2 * item.count * args.dim;
            softmax.template step<2>(
                queries, keys, keys + PART, [&](uint32_t column, int, float logit) {
                    uint32_t r = unit * SLOTS + column;
                    return r < item.count ? logit + log2f(counts[r]) : -INFINITY;
                });
        } else {
            uint32_t base = split.y + (unit - memory) * SLOTS;
            softmax.template step<2>(
                queries, keys, keys + PART, [&](uint32_t column, int half, float logit) {
                    uint32_t slot = base + column;
                    return slot >= rows[half].first && slot < rows[half].end ? logit : -INFINITY;
                });
        }
        __syncwarp();
    }
    copy_wait<0>();
    softmax.finish();
    __syncthreads();

    // Warp w's [16][DP] values, [16] maxima, [16] sums.
    constexpr uint32_t RESULT = 16 * DP + 32;
    float *results = reinterpret_cast<float *>(raw), *mine = results + warp * RESULT;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t row = lane / 4 + half * 8;
#pragma unroll
        for (int tile = 0; tile < DP / 8; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                mine[row * DP + tile * 8 + lane % 4 * 2 + i] = softmax.values[tile][2 * half + i];
        if (lane % 4 == 0) {
            mine[16 * DP + row] = softmax.most[half];
            mine[16 * DP + 16 + row] = softmax.sum[half];
        }
    }
    __syncthreads();
    uint32_t total = item.rows * group;
    for (uint32_t i = threadIdx.x; i < total * args.dim; i += 128) {
        uint32_t row = i / args.dim, d = i % args.dim;
        float most = -INFINITY, sum = 0.0f, value = 0.0f;
        for (uint32_t w = 0; w < 4; ++w) most = fmaxf(most, results[w * RESULT + 16 * DP + row]);
        float base = most == -INFINITY ? 0.0f : most;
        for (uint32_t w = 0; w < 4; ++w) {
            const float *other = results + w * RESULT;
            float factor = exp2f(other[16 * DP + row] - base);
            sum += factor * other[16 * DP + 16 + row];
            value += factor * other[row * DP + d];
        }
        if (split.z == NONE) {
            size_t at =
                (size_t)(item.row + row / group) * args.heads + item.kv_head * group + row % group;
            args.out[at * args.dim + d] = value / sum;
        } else {
            float *partial = partials + (size_t)split.z * RESULT;
            partial[row * DP + d] = value;
            if (d == 0) {
                partial[16 * DP + row] = most;
                partial[16 * DP + 16 + row] = sum;
            }
        }
    }
}

#define DECODE(DP, NAME, T, BLOCKS)                                                                \
    extern "C" __global__ void __launch_bounds__ BLOCKS attention_decode##NAME(                    \
        ATTENTION_PARAMETERS, const uint4 *splits, float *partials) {                              \
        AttentionArgs args = ATTENTION_ARGS;                                                       \
        attention_decode<DP, T>(args, splits, partials);                                           \
    }                                                                                              \
    REGISTER_KERNEL(attention_decode##NAME)

DECODE(16, _16, half_t, (128))
DECODE(16, _16_q8, eight_t, (128, 2))
DECODE(32, _32, half_t, (128))
DECODE(32, _32_q8, eight_t, (128, 2))
DECODE(64, _64, half_t, (128))
DECODE(64, _64_q8, eight_t, (128, 2))
DECODE(96, _96, half_t, (128))
DECODE(96, _96_q8, eight_t, (128, 2))
DECODE(128, _128, half_t, (128))
DECODE(128, _128_q8, eight_t, (128, 2))

// merges: {item, first partial result, number of them}; a block per (query row, item), a thread per
// dimension.
extern "C" __global__ void attention_merge(const Item *items, const uint4 *merges,
                                           const float *partials, float *out, uint32_t heads,
                                           uint32_t kv_heads, uint32_t dim, uint32_t padded) {
    const uint4 merge = merges[blockIdx.y];
    if (merge.x == NONE) return;
    const Item item = items[merge.x];
    uint32_t row = blockIdx.x, group = heads / kv_heads, result = 16 * padded + 32;
    if (row >= item.rows * group) return;
    const float *first = partials + (size_t)merge.y * result;
    float most = -INFINITY;
    for (uint32_t s = 0; s < merge.z; ++s)
        most = fmaxf(most, first[(size_t)s * result + 16 * padded + row]);
    size_t at =
        ((size_t)(item.row + row / group) * heads + item.kv_head * group + row % group) * dim;
    for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
        float sum = 0.0f, value = 0.0f;
        for (uint32_t s = 0; s < merge.z; ++s) {
            const float *partial = first + (size_t)s * result;
            float factor = exp2f(partial[16 * padded + row] - most);
            sum += factor * partial[16 * padded + 16 + row];
            value += factor * partial[row * padded + d];
        }
        out[at + d] = value / sum;
    }
}
REGISTER_KERNEL(attention_merge)
