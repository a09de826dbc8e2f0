// Associative memory and pairwise indexer (IndexMem, arXiv 2605.25475).
//
//   readout       out += gate * (phi(q)^T A) / max((phi(q)^2)^T b, 1e-6),  phi(q) = features * q
//                 A state [f, D], then [f], at an address of its own, written by memorise.cu.
//                 A block per (row, query head): features by warps, then a thread per dimension.
//   index_scores  score[slot] = max(score[slot], max over rows of sum_h w[h] * relu(<q[h], key>))
//                 A thread per slot; keys are narrow (8 to 32 values), queries come from the L1 for
//                 all threads alike.
#include "common.cuh"

extern "C" __global__ void readout(const float *features, const float *gates, const float *q,
                                   const Item *items, const float *const *states, float *out,
                                   uint32_t heads, uint32_t kv_heads, uint32_t dim) {
    DYNAMIC_SHARED(raw);
    float *phi = reinterpret_cast<float *>(raw);
    __shared__ float partial[32];
    const Item item = items[blockIdx.y];
    uint32_t group = heads / kv_heads, lane = threadIdx.x % 32;
    if (blockIdx.x >= item.rows * group) return;
    uint32_t row = item.row + blockIdx.x / group, head = item.kv_head * group + blockIdx.x % group;
    size_t at = ((size_t)row * heads + head) * dim;
    // `count` features: sums [f, D], then norms [f].
    const float *sums = states[item.extra], *norms = sums + (size_t)item.count * dim;
    float mass = 0.0f;
    for (uint32_t f = threadIdx.x / 32; f < item.count; f += blockDim.x / 32) {
        float dot = 0.0f;
        for (uint32_t d = lane; d < dim; d += 32) dot += features[(size_t)f * dim + d] * q[at + d];
        dot = warp_sum(dot);
        if (lane == 0) {
            phi[f] = dot;
            mass += dot * dot * norms[f];
        }
    }
    mass = block_sum(mass, partial);
    float scale = gates[item.kv_head] / fmaxf(mass, 1e-6f);
    for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t f = 0; f < item.count; ++f) sum += phi[f] * sums[(size_t)f * dim + d];
        out[at + d] += scale * sum;
    }
}
REGISTER_KERNEL(readout)

// An item's floats begin at `extra`: queries [rows, heads, dim], weights [rows, heads], keys [len,
// dim].
extern "C" __global__ void index_scores(const Item *items, const float *inputs, float *scores,
                                        uint32_t heads, uint32_t dim) {
    const Item item = items[blockIdx.y];
    const float *queries = inputs + item.extra,
                *weights = queries + (size_t)item.rows * heads * dim;
    const float *keys = weights + (size_t)item.rows * heads;
    uint32_t before = item.len - item.rows;
    for (uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x; slot < item.len;
         slot += gridDim.x * blockDim.x) {
        float most = scores[item.output + slot];
        for (uint32_t row = slot > before ? slot - before : 0; row < item.rows; ++row) {
            float score = 0.0f;
            for (uint32_t h = 0; h < heads; ++h) {
                float dot = 0.0f;
                for (uint32_t d = 0; d < dim; ++d)
                    dot +=
                        queries[((size_t)row * heads + h) * dim + d] * keys[(size_t)slot * dim + d];
                score += weights[(size_t)row * heads + h] * fmaxf(dot, 0.0f);
            }
            most = fmaxf(most, score);
        }
        scores[item.output + slot] = most;
    }
}
REGISTER_KERNEL(index_scores)
