// Slots that go, merged into latent memories before the compaction.
//
//   memorise_centroids    the first R entries are the centroids; a later entry k moves the nearest
//   one, r = argmin |c_r - k|^2 (the
//                         first of equals): n_r += 1, c_r += (k - c_r) / n_r, the same for its
//                         value (IndexMem++ pool, online form)
//   memorise_associative  A[f] += phi_f v, b[f] += phi_f^2, phi_f = <feature_f, k> (IndexMem, arXiv
//   2605.25475)
//
// Entries are taken in slot order, as kernels/src/latent.rs takes them, and every sum has its
// order: eight running sums over the dimensions, then those from the first on, products and sums
// rounded apart. So states have the CPU's bits.
//
// State of a head, f32: keys [R, D], values [R, D], counts [R], a count of 0 for no centroid yet;
// or A [f, D], b [f].
//
// Centroids: a block per head, since each entry needs what the one before it left. A thread takes a
// centroid, 256 at a time, four dimensions a load; keys of the centroids lie in shared memory where
// they fit, in rows of D + 4, so that neighbours meet no bank twice. Associative: sums of different
// features do not meet, so a block takes eight features of a head, and entries 32 at a time: first
// a thread per (entry, feature), then a thread per (feature, dimension).
//
// Versions tried, by counting instructions, as no GPU has run any: eight lanes a centroid, one
// running sum each, need 5 instructions an element and 8 shuffles a centroid; a thread with eight
// sums needs 3.5 and none. 254 centroids of 128 (the default memory at a budget of 4096) and 512
// entries in each of 256 heads are 12.8e9 operations that must stay apart.
#include "common.cuh"

constexpr uint32_t GROUP = 8;    // running sums, and features of a block
constexpr uint32_t ENTRIES = 32; // entries at a time
constexpr uint32_t MEMORISE_THREADS = 256;

// `len`, `table`: slots of the head; `output`: its part of `losts`; `extra`: its state; `count`: R
// or f. `kept`: two counts of every head, see select.cu.
#define MEMORISE_PARAMETERS(T)                                                                     \
    const T *pages, const Item *items, const uint32_t *tables, float *const *states,               \
        const uint32_t *kept, const uint32_t *losts, uint32_t dim

// Nearest so far: smaller distance first, then smaller index.
struct Nearest {
    float distance;
    uint32_t index;

    __device__ void take(float other, uint32_t at) {
        if (other < distance || (other == distance && at < index)) distance = other, index = at;
    }
};

__device__ inline void add_squares(float *part, float4 a, float4 b) {
    float4 off = {__fadd_rn(a.x, -b.x), __fadd_rn(a.y, -b.y), __fadd_rn(a.z, -b.z),
                  __fadd_rn(a.w, -b.w)};
    part[0] = __fadd_rn(part[0], __fmul_rn(off.x, off.x));
    part[1] = __fadd_rn(part[1], __fmul_rn(off.y, off.y));
    part[2] = __fadd_rn(part[2], __fmul_rn(off.z, off.z));
    part[3] = __fadd_rn(part[3], __fmul_rn(off.w, off.w));
}

// The running sums, in order.
__device__ inline float add_up(const float (&part)[GROUP]) {
    float sum = part[0];
#pragma unroll
    for (uint32_t i = 1; i < GROUP; ++i) sum = __fadd_rn(sum, part[i]);
    return sum;
}

// The centroid nearest to `key`; `keys` has rows of `stride`. All threads get it.
__device__ inline uint32_t nearest_centroid(const float *keys, uint32_t stride, uint32_t most,
                                            const float *key, uint32_t dim, Nearest *found) {
    const float4 *entry = reinterpret_cast<const float4 *>(key);
    Nearest best = {INFINITY, 0};
    for (uint32_t r = threadIdx.x; r < most; r += MEMORISE_THREADS) {
        const float4 *centroid = reinterpret_cast<const float4 *>(keys + (size_t)r * stride);
        float part[GROUP] = {};
        for (uint32_t d = 0; d < dim / 4; d += 2) {
            add_squares(part, centroid[d], entry[d]);
            add_squares(part + 4, centroid[d + 1], entry[d + 1]);
        }
        float sum = add_up(part);
        if (sum < best.distance) best = {sum, r};
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        float distance = __shfl_xor_sync(FULL, best.distance, step);
        best.take(distance, __shfl_xor_sync(FULL, best.index, step));
    }
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = best;
    __syncthreads();
    best = found[0];
    for (uint32_t w = 1; w < MEMORISE_THREADS / 32; ++w)
        best.take(found[w].distance, found[w].index);
    return best.index;
}

// `held`: keys of the centroids fit into shared memory.
template <class T>
__device__ inline void memorise_centroids(MEMORISE_PARAMETERS(T), uint32_t held) {
    DYNAMIC_SHARED(raw);
    __shared__ Nearest found[MEMORISE_THREADS / 32];
    const Item item = items[blockIdx.x];
    uint32_t lost = item.len - kept[2 * blockIdx.x], most = item.count;
    if (lost == 0) return;
    float *state = states[item.extra], *values = state + (size_t)most * dim,
          *counts = values + (size_t)most * dim;
    float *key = reinterpret_cast<float *>(raw), *keys = held ? key + dim : state;
    uint32_t stride = held ? dim + 4 : dim, filled = 0;
    // Counts are positive up to the first centroid that is free.
    while (filled < most && counts[filled] > 0.0f) ++filled;
    if (held)
        for (uint32_t i = threadIdx.x; i < filled * dim; i += blockDim.x)
            keys[i / dim * stride + i % dim] = state[i];
    __syncthreads();
    for (uint32_t i = 0; i < lost; ++i) {
        const T *entry = slot_key(pages, tables + item.table, losts[item.output + i], dim);
        float2 scale = read_scales(pages, tables + item.table, losts[item.output + i], dim);
        for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x)
            key[d] = to_float(entry[d]) * scale.x;
        __syncthreads();
        uint32_t r = filled < most ? filled : nearest_centroid(keys, stride, most, key, dim, found);
        float n = filled < most ? 1.0f : __fadd_rn(counts[r], 1.0f);
        auto mean = [&](float *at, float x) {
            float step = __fdiv_rn(__fadd_rn(x, -*at), n);
            *at = filled < most ? x : __fadd_rn(*at, step);
        };
        for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
            mean(keys + (size_t)r * stride + d, key[d]);
            mean(values + (size_t)r * dim + d, to_float(entry[SLOTS * dim + d]) * scale.y);
        }
        // All have read the count, the key and what was found.
        __syncthreads();
        if (threadIdx.x == 0) counts[r] = n;
        if (filled < most) ++filled;
    }
    __syncthreads();
    if (held)
        for (uint32_t i = threadIdx.x; i < filled * dim; i += blockDim.x)
            state[i] = keys[i / dim * stride + i % dim];
}

// `features`: those of the layers, `layer` floats each, which `group` heads share. Shared: features
// [8][D + 1], keys [32][D + 1], values [32][D], phi [32][8].
template <class T>
__device__ inline void memorise_associative(MEMORISE_PARAMETERS(T), const float *features,
                                            uint32_t group, uint32_t layer) {
    DYNAMIC_SHARED(raw);
    const Item item = items[blockIdx.y];
    uint32_t lost = item.len - kept[2 * blockIdx.y], first = blockIdx.x * GROUP, row = dim + 1;
    if (lost == 0 || first >= item.count) return;
    uint32_t count = min(GROUP, item.count - first);
    float *sums = states[item.extra], *norms = sums + (size_t)item.count * dim + first;
    sums += (size_t)first * dim;
    features += (size_t)(blockIdx.y / group) * layer + (size_t)first * dim;
    float *own = reinterpret_cast<float *>(raw), *keys = own + GROUP * row,
          *values = keys + ENTRIES * row;
    float *phi = values + ENTRIES * dim;
    for (uint32_t i = threadIdx.x; i < count * dim; i += blockDim.x)
        own[i / dim * row + i % dim] = features[i];
    for (uint32_t begin = 0; begin < lost; begin += ENTRIES) {
        uint32_t entries = min(ENTRIES, lost - begin);
        for (uint32_t i = threadIdx.x; i < entries * dim; i += blockDim.x) {
            uint32_t e = i / dim, d = i % dim;
            const T *entry =
                slot_key(pages, tables + item.table, losts[item.output + begin + e], dim);
            float2 scale =
                read_scales(pages, tables + item.table, losts[item.output + begin + e], dim);
            keys[e * row + d] = to_float(entry[d]) * scale.x;
            values[i] = to_float(entry[SLOTS * dim + d]) * scale.y;
        }
        __syncthreads();
        uint32_t e = threadIdx.x / GROUP, f = threadIdx.x % GROUP;
        if (e < entries && f < count) {
            float part[GROUP] = {};
            for (uint32_t d = 0; d < dim; d += GROUP)
#pragma unroll
                for (uint32_t i = 0; i < GROUP; ++i)
                    part[i] =
                        __fadd_rn(part[i], __fmul_rn(own[f * row + d + i], keys[e * row + d + i]));
            phi[e * GROUP + f] = add_up(part);
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count * dim; i += blockDim.x) {
            float sum = sums[i];
            for (uint32_t e = 0; e < entries; ++e)
                sum =
                    __fadd_rn(sum, __fmul_rn(phi[e * GROUP + i / dim], values[e * dim + i % dim]));
            sums[i] = sum;
        }
        if (threadIdx.x < count)
            for (uint32_t e = 0; e < entries; ++e) {
                float p = phi[e * GROUP + threadIdx.x];
                norms[threadIdx.x] = __fadd_rn(norms[threadIdx.x], __fmul_rn(p, p));
            }
        __syncthreads();
    }
}

#define MEMORISE_KERNELS(NAME, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(MEMORISE_THREADS, 2)                              \
        memorise_centroids_##NAME(MEMORISE_PARAMETERS(T), uint32_t held) {                         \
        memorise_centroids(pages, items, tables, states, kept, losts, dim, held);                  \
    }                                                                                              \
    REGISTER_KERNEL(memorise_centroids_##NAME)                                                     \
    extern "C" __global__ void __launch_bounds__(MEMORISE_THREADS, 2) memorise_associative_##NAME( \
        MEMORISE_PARAMETERS(T), const float *features, uint32_t group, uint32_t layer) {           \
        memorise_associative(pages, items, tables, states, kept, losts, dim, features, group,      \
                             layer);                                                               \
    }                                                                                              \
    REGISTER_KERNEL(memorise_associative_##NAME)

MEMORISE_KERNELS(q8, eight_t)
MEMORISE_KERNELS(f16, half_t)
MEMORISE_KERNELS(f32, float)
