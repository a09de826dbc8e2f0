// Ranking within a block: keys that order as integers do, cuts by radix select, places by prefix
// counts.
#pragma once
#include "common.cuh"

// What is taken of a ranking: keys above `key`, and the first `ties` of that very key.
struct Cut {
    uint32_t key, ties;
};

constexpr uint32_t BINS = 256;
constexpr uint32_t ALL = 0xffffffffu;

__device__ inline uint32_t score_key(float score) {
    if (score != score) return 0;
    uint32_t bits = __float_as_uint(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The cut that `want` keys pass, of at least as many that `each` hands to its argument with how
// often they count. `bins` has BINS counts. All threads of the block get it.
template <class Each>
__device__ inline Cut radix_cut(Each each, uint32_t want, uint32_t *bins) {
    uint32_t prefix = 0, left = want;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t bin = threadIdx.x; bin < BINS; bin += blockDim.x) bins[bin] = 0;
        __syncthreads();
        each([&](uint32_t key, uint32_t times) {
            if (shift == 24 || (key ^ prefix) >> (shift + 8) == 0)
                atomicAdd(&bins[(key >> shift) % BINS], times);
        });
        __syncthreads();
        uint32_t digit = BINS - 1;
        while (digit > 0 && bins[digit] < left) left -= bins[digit--];
        prefix |= digit << shift;
        __syncthreads();
    }
    return {prefix, left};
}

// How many threads before this one have `flag`, and how many of the block do. `partial` has a count
// for each warp.
__device__ inline uint32_t block_rank(bool flag, uint32_t *partial, uint32_t &total) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t mask = __ballot_sync(FULL, flag);
    if (lane == 0) partial[warp] = __popc(mask);
    __syncthreads();
    uint32_t rank = __popc(mask & ((1u << lane) - 1u));
    total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; ++w) {
        if (w == warp) rank += total;
        total += partial[w];
    }
    __syncthreads();
    return rank;
}
