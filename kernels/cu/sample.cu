// The next token of each row of logits: edits, mask, greedy choice, temperature, top-k, min-p,
// top-p, draw.
//
//   best first is falling logit, then rising token; every filter keeps a prefix of that order, so
//   each is a mass: mass(token) = floor(2^44 exp((logit - best) / temperature));  total = the least
//   of what top-k and min-p leave top-p: the shortest prefix with at least ceil(total * top_p);
//   draw: the first token whose prefix exceeds floor(uniform * total)
//
// Masses are integers: they add up to the same sum in any order, and exp is made of multiplications
// and additions that round the same everywhere, so the token is the host's (kernels/src/sample.rs),
// bit for bit. A place in the order is found by radix descent over the keys of the logits, eight
// bits at a time, with a histogram of masses in shared memory.
//
// A block per row. NaN among the logits: the token is NONE.
#include "rank.cuh"

typedef unsigned long long u64;

// As in kernels/src/cuda/launch/records.rs.
struct Sample {
    uint32_t row, first_edit, edits, top_k;
    float temperature, top_p;
    u64 least_mass; // of min-p
    u64 uniform;    // 53 random bits
    // First word of the tokens that may be chosen, or NONE: bit t % 32 of word t / 32 is token t's.
    uint32_t mask, unused;
};

// See LogitEdit.
struct Edit {
    uint32_t token;
    float bias, repetition, frequency, presence;
    uint32_t flags;
};
constexpr uint32_t EDIT_BIAS = 1, EDIT_PENALTIES = 2, EDIT_BANNED = 4;

// Orders as total_cmp does.
__device__ inline uint32_t total_key(float x) {
    uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_total_key(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// floor(2^44 exp(x)) for x <= 0: see mass() in kernels/src/sample.rs, operation by operation.
__device__ inline u64 token_mass(float difference) {
    double x = (double)difference;
    if (!(x > -31.0)) return 0;
    const double round = 6755399441055744.0;
    double n = __dadd_rn(__dadd_rn(__dmul_rn(x, 1.4426950408889634), round), -round);
    double r = __dadd_rn(__dadd_rn(x, -__dmul_rn(n, 0.6931471803691238)),
                         -__dmul_rn(n, 1.9082149292705877e-10));
    double p = 1.0;
#pragma unroll
    for (int k = 13; k > 0; --k) p = __dadd_rn(1.0, __ddiv_rn(__dmul_rn(r, p), (double)k));
    u64 power = (u64)(1023 + 44 + (int)n) << 52;
    return (u64)__dmul_rn(p, __longlong_as_double((long long)power));
}

struct Row {
    const float *logits;
    uint32_t vocabulary;
    float best, temperature;

    __device__ u64 mass(float logit) const { return token_mass((logit - best) / temperature); }
};

// A place in the order: tokens of this very key, and the mass that is left before the place among
// them.
struct Place {
    uint32_t key;
    u64 left;
};

// Where the masses before exceed `target`, which is less than all of them together. All threads get
// it.
__device__ inline Place descend(const Row &row, u64 target, u64 *bins) {
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t bin = threadIdx.x; bin < 256; bin += blockDim.x) bins[bin] = 0;
        __syncthreads();
        for (uint32_t token = threadIdx.x; token < row.vocabulary; token += blockDim.x) {
            uint32_t key = total_key(row.logits[token]);
            if (shift != 24 && (key ^ prefix) >> (shift + 8) != 0) continue;
            u64 mass = row.mass(row.logits[token]);
            if (mass > 0) atomicAdd(&bins[(key >> shift) % 256], mass);
        }
        __syncthreads();
        uint32_t digit = 255;
        while (digit > 0 && bins[digit] <= target) target -= bins[digit--];
        prefix |= digit << shift;
        __syncthreads();
    }
    return {prefix, target};
}

// Sum over the tokens that `wanted` names by key and mass. All threads get it.
template <class Wanted>
__device__ inline u64 sum_masses(const Row &row, Wanted wanted, u64 *total) {
    if (threadIdx.x == 0) *total = 0;
    __syncthreads();
    u64 own = 0;
    for (uint32_t token = threadIdx.x; token < row.vocabulary; token += blockDim.x) {
        u64 mass = row.mass(row.logits[token]);
        if (wanted(total_key(row.logits[token]), mass)) own += mass;
    }
    if (own > 0) atomicAdd(total, own);
    __syncthreads();
    u64 sum = *total;
    __syncthreads();
    return sum;
}

// What top-k and min-p leave.
__device__ inline u64 total_mass(const Row &row, const Sample &sample, uint32_t *counts,
                                 u64 *total) {
    u64 sum = sum_masses(row, [&](uint32_t, u64 mass) { return mass >= sample.least_mass; }, total);
    if (sample.top_k == 0 || sample.top_k >= row.vocabulary) return sum;
    auto each = [&](auto add) {
        for (uint32_t token = threadIdx.x; token < row.vocabulary; token += blockDim.x)
            add(total_key(row.logits[token]), 1u);
    };
    Cut cut = radix_cut(each, sample.top_k, counts);
    u64 above = sum_masses(row, [&](uint32_t key, u64) { return key > cut.key; }, total);
    above += cut.ties * row.mass(from_total_key(cut.key));
    return above < sum ? above : sum;
}

// The token that ends the prefix of mass `target`.
__device__ inline uint32_t token_at(const Row &row, Place place, uint32_t *partial,
                                    uint32_t *found) {
    uint32_t index = (uint32_t)(place.left / row.mass(from_total_key(place.key))), seen = 0;
    for (uint32_t base = 0; base < row.vocabulary && seen <= index; base += blockDim.x) {
        uint32_t token = base + threadIdx.x, total;
        bool same = token < row.vocabulary && total_key(row.logits[token]) == place.key;
        uint32_t rank = seen + block_rank(same, partial, total);
        if (same && rank == index) *found = token;
        seen += total;
    }
    __syncthreads();
    return *found;
}

// The best logit and its first token, both zeros being one; `best` has a word for each warp. All
// threads get the token.
__device__ inline uint32_t best_token(const float *logits, uint32_t vocabulary, u64 *best) {
    u64 own = 0;
    for (uint32_t token = threadIdx.x; token < vocabulary; token += blockDim.x) {
        u64 candidate = (u64)score_key(logits[token]) << 32 | (0xffffffffu - token);
        own = candidate > own ? candidate : own;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(FULL, own, step);
        own = other > own ? other : own;
    }
    if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = own;
    __syncthreads();
    u64 most = best[0];
    for (uint32_t w = 1; w < blockDim.x / 32; ++w) most = best[w] > most ? best[w] : most;
    __syncthreads();
    return 0xffffffffu - (uint32_t)most;
}

extern "C" __global__ void sample(float *all, uint32_t vocabulary, const Sample *samples,
                                  const Edit *edits, const uint32_t *masks, uint32_t *tokens) {
    __shared__ u64 bins[256];
    __shared__ uint32_t counts[BINS], partial[32], found;
    __shared__ u64 total;
    const Sample sample = samples[blockIdx.x];
    if (sample.row == NONE) return; // of no sequence: kernels/src/cuda/sampling.rs
    float *logits = all + (size_t)sample.row * vocabulary;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < vocabulary; token += blockDim.x)
        if (logits[token] != logits[token]) atomicAdd(&found, 1u);
    __syncthreads();
    if (found > 0) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = NONE;
        return;
    }
    for (uint32_t i = threadIdx.x; i < sample.edits; i += blockDim.x) {
        const Edit edit = edits[sample.first_edit + i];
        float x = logits[edit.token];
        if (edit.flags & EDIT_BIAS) x = x + edit.bias;
        if (edit.flags & EDIT_PENALTIES) {
            x = x > 0.0f ? x / edit.repetition : x * edit.repetition;
            // Two roundings each, as on the host: nothing is contracted.
            x = __fadd_rn(x, -edit.frequency);
            x = __fadd_rn(x, -edit.presence);
        }
        logits[edit.token] = edit.flags & EDIT_BANNED ? __uint_as_float(0xff800000u) : x;
    }
    __syncthreads();
    if (sample.mask != NONE) {
        const uint32_t *mask = masks + sample.mask;
        for (uint32_t token = threadIdx.x; token < vocabulary; token += blockDim.x)
            if (!(mask[token / 32] >> token % 32 & 1)) logits[token] = __uint_as_float(0xff800000u);
        __syncthreads();
    }
    uint32_t token = best_token(logits, vocabulary, bins);
    if (sample.temperature > 0.0f) {
        Row row = {logits, vocabulary, logits[token], sample.temperature};
        u64 mass = total_mass(row, sample, counts, &total);
        if (mass > 0) {
            if (sample.top_p < 1.0f) {
                double part = ceil(__dmul_rn((double)mass, (double)sample.top_p));
                u64 wanted = part < 1.0 ? 1 : (u64)part;
                wanted = wanted < mass ? wanted : mass;
                Place end = descend(row, wanted - 1, bins);
                u64 one = row.mass(from_total_key(end.key));
                mass = wanted - 1 - end.left + (end.left / one + 1) * one;
            }
            u64 target = __umul64hi(sample.uniform, mass) << 11 | (sample.uniform * mass) >> 53;
            token = token_at(row, descend(row, target, bins), partial, &found);
        }
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
REGISTER_KERNEL(sample)
