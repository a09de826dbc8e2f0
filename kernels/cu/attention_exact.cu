// Attention and observed probabilities in f32 throughout.
//
//   attention_exact   f32 caches (parity with the CPU) and heads wider than 128. A block per query
//   row; its four warps
//                     take centroids (logits raised by ln n, n entries each) and slots in turn,
//                     lanes run over D, online softmax per warp, merged at the end.
//   observe_logits    logits and, per query row, maximum and sum, for the probabilities that
//   policies look at:
//                     logits [rows*G, len], statistics [rows*G, 2]. A block per query row.
//   observe_reduce    weight[slot] (+)= over rows and heads of p * row_weight: sum / G or maximum,
//   row by row, so that
//                     the order does not depend on how rows are cut into calls. A thread per slot.
// Only policies that observe attention pay for the last two.
#include "attention.cuh"

template <class T>
__device__ inline float dot(const float *q, const T *key, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t d = threadIdx.x % 32; d < dim; d += 32) sum += q[d] * to_float(key[d]);
    return warp_sum(sum);
}

template <class T>
__device__ inline void attention_exact(const Item *items, const uint32_t *tables,
                                       const uint32_t *first_visible, const float *const *centroids,
                                       const T *pages, const float *q, float *out, uint32_t heads,
                                       uint32_t kv_heads, uint32_t dim) {
    DYNAMIC_SHARED(raw);
    __shared__ float most_of[4], sum_of[4];
    const Item item = items[blockIdx.y];
    uint32_t group = heads / kv_heads, m = blockIdx.x, lane = threadIdx.x % 32,
             warp = threadIdx.x / 32;
    if (m >= item.rows * group) return;
    uint32_t i = m / group;
    size_t at = ((size_t)(item.row + i) * heads + item.kv_head * group + m % group) * dim;
    float scale = 1.0f / sqrtf((float)dim), most = -INFINITY, sum = 0.0f;
    float *values = reinterpret_cast<float *>(raw) + warp * dim;
    for (uint32_t d = lane; d < dim; d += 32) values[d] = 0.0f;
    auto take = [&](float logit, auto value, float unit) {
        if (logit == -INFINITY) return;
        float next = fmaxf(most, logit), factor = expf(most - next), p = expf(logit - next);
        most = next;
        sum = sum * factor + p;
        for (uint32_t d = lane; d < dim; d += 32)
            values[d] = values[d] * factor + p * (to_float(value[d]) * unit);
    };
    const float *keys = item.count ? centroids[item.extra] : nullptr;
    const float *centroid_values = keys + (size_t)item.count * dim,
                *counts = centroid_values + (size_t)item.count * dim;
    for (uint32_t r = warp; r < item.count; r += 4)
        take(scale * dot(q + at, keys + (size_t)r * dim, dim) + logf(counts[r]),
             centroid_values + (size_t)r * dim, 1.0f);
    uint32_t first = item.first == NONE ? 0 : first_visible[item.first + i],
             end = item.len - item.rows + i + 1;
    for (uint32_t slot = first + warp; slot < end; slot += 4) {
        const T *key = slot_key(pages, tables + item.table, slot, dim);
        float2 units = read_scales(pages, tables + item.table, slot, dim);
        take(scale * (dot(q + at, key, dim) * units.x), key + SLOTS * dim, units.y);
    }
    if (lane == 0) most_of[warp] = most, sum_of[warp] = sum;
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += 128) {
        float all = fmaxf(fmaxf(most_of[0], most_of[1]), fmaxf(most_of[2], most_of[3])),
              total = 0.0f, value = 0.0f;
        for (uint32_t w = 0; w < 4; ++w) {
            float factor = expf(most_of[w] - all);
            total += factor * sum_of[w];
            value += factor * reinterpret_cast<float *>(raw)[w * dim + d];
        }
        out[at + d] = value / total;
    }
}

// `output`: first logit of the item; `flags`: first of its query rows in `statistics`.
template <class T>
__device__ inline void
observe_logits(const Item *items, const uint32_t *tables, const uint32_t *first_visible,
               const float *const *centroids, const T *pages, const float *q, float *logits,
               float *statistics, uint32_t heads, uint32_t kv_heads, uint32_t dim) {
    __shared__ float partial[32];
    const Item item = items[blockIdx.y];
    uint32_t group = heads / kv_heads, m = blockIdx.x, lane = threadIdx.x % 32,
             warp = threadIdx.x / 32;
    if (m >= item.rows * group) return;
    uint32_t i = m / group, first = item.first == NONE ? 0 : first_visible[item.first + i];
    uint32_t end = item.len - item.rows + i + 1;
    q += ((size_t)(item.row + i) * heads + item.kv_head * group + m % group) * dim;
    float scale = 1.0f / sqrtf((float)dim), most = -INFINITY, sum = 0.0f;
    float *row = logits + item.output + (size_t)m * item.len;
    for (uint32_t slot = warp; slot < item.len; slot += 4) {
        bool seen = slot >= first && slot < end;
        float unit = read_scales(pages, tables + item.table, slot, dim).x;
        float logit = dot(q, slot_key(pages, tables + item.table, slot, dim), dim) * unit;
        logit = seen ? scale * logit : -INFINITY;
        if (lane == 0) row[slot] = logit;
        most = fmaxf(most, logit);
    }
    const float *keys = item.count ? centroids[item.extra] : nullptr,
                *counts = keys + (size_t)2 * item.count * dim;
    for (uint32_t r = warp; r < item.count; r += 4)
        most = fmaxf(most, scale * dot(q, keys + (size_t)r * dim, dim) + logf(counts[r]));
    most = block_max(most, partial);
    for (uint32_t slot = threadIdx.x; slot < item.len; slot += 128) sum += expf(row[slot] - most);
    for (uint32_t r = warp; r < item.count; r += 4) {
        float p = expf(scale * dot(q, keys + (size_t)r * dim, dim) + logf(counts[r]) - most);
        if (lane == 0) sum += p;
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) {
        statistics[2 * (item.flags + m)] = most;
        statistics[2 * (item.flags + m) + 1] = sum;
    }
}

#define EXACT(NAME, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(128) attention_exact_##NAME(                      \
        const Item *items, const uint32_t *tables, const uint32_t *first_visible,                  \
        const float *const *centroids, const T *pages, const float *q, float *out, uint32_t heads, \
        uint32_t kv_heads, uint32_t dim) {                                                         \
        attention_exact(items, tables, first_visible, centroids, pages, q, out, heads, kv_heads,   \
                        dim);                                                                      \
    }                                                                                              \
    REGISTER_KERNEL(attention_exact_##NAME)                                                        \
    extern "C" __global__ void __launch_bounds__(128) observe_logits_##NAME(                       \
        const Item *items, const uint32_t *tables, const uint32_t *first_visible,                  \
        const float *const *centroids, const T *pages, const float *q, float *logits,              \
        float *statistics, uint32_t heads, uint32_t kv_heads, uint32_t dim) {                      \
        observe_logits(items, tables, first_visible, centroids, pages, q, logits, statistics,      \
                       heads, kv_heads, dim);                                                      \
    }                                                                                              \
    REGISTER_KERNEL(observe_logits_##NAME)

EXACT(q8, eight_t)
EXACT(f16, half_t)
EXACT(f32, float)

struct Reduction {
    uint32_t item, is_max, row_weights,
        weights; // row_weights: first in `row_weights`, or NONE; weights: first in `out`
};

extern "C" __global__ void observe_reduce(const Item *items, const Reduction *reductions,
                                          const float *logits, const float *statistics,
                                          const float *row_weights, float *out, uint32_t group) {
    const Reduction reduction = reductions[blockIdx.y];
    const Item item = items[reduction.item];
    for (uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x; slot < item.len;
         slot += gridDim.x * blockDim.x) {
        float weight = out[reduction.weights + slot];
        for (uint32_t i = 0; i < item.rows; ++i) {
            float scale =
                      reduction.row_weights == NONE ? 1.0f : row_weights[reduction.row_weights + i],
                  row = 0.0f;
            for (uint32_t g = 0; g < group; ++g) {
                uint32_t m = i * group + g;
                const float *statistic = statistics + 2 * (size_t)(item.flags + m);
                float p = expf(logits[item.output + (size_t)m * item.len + slot] - statistic[0]) /
                          statistic[1];
                row = reduction.is_max ? fmaxf(row, p) : row + p;
            }
            weight =
                reduction.is_max ? fmaxf(weight, scale * row) : weight + scale * row / (float)group;
        }
        out[reduction.weights + slot] = weight;
    }
}
REGISTER_KERNEL(observe_reduce)
