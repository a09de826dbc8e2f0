// Which slots stay at a boundary: ranking under pooled budgets, without the host.
//
//   select_heads   the best `floor` candidates of each head, as a cut: a key, and how many of that
//   very key are in. select_pools   the rest of a pool's places go to the best remaining candidates
//   of its heads; the cut of each head. select_lists   what stays and what goes, in order: a stable
//   compaction of slot numbers by the cuts. keep_lists     the same lists from what the host chose.
//
// A score becomes a key that orders as integers do (NaN below everything, both zeros one). A cut is
// found by radix select: four rounds over eight bits of the keys from the top, each a histogram in
// shared memory and a walk down it. Counts do not depend on the order in which they are added up,
// so the answer is the same in every run. Ties go by head, then by slot, smaller first. A head
// keeps a prefix of its own ranking, hence one cut per head says everything.
//
// A block per head, per pool, per head. One block reads all keys of a pool: 32 heads of 4352 slots
// are 0.5 MB, five times.
#include "rank.cuh"

// The floor of a head, and what it leaves to the pool.
struct Floor {
    Cut cut;
    uint32_t own;  // candidates taken
    uint32_t rest; // ties of the cut that were not
};

// Candidates of `item` that have this very key. All threads get the count.
__device__ inline uint32_t count_key(const Item &item, const float *scores, uint32_t key,
                                     uint32_t *counter) {
    if (threadIdx.x == 0) *counter = 0;
    __syncthreads();
    for (uint32_t slot = item.first + threadIdx.x; slot < item.count; slot += blockDim.x)
        if (score_key(scores[item.extra + slot]) == key) atomicAdd(counter, 1u);
    __syncthreads();
    uint32_t count = *counter;
    __syncthreads();
    return count;
}

// Candidates of an item are its slots `first .. count`; its scores begin at `extra`.
extern "C" __global__ void select_heads(const Item *items, const float *scores, Floor *floors,
                                        uint32_t floor) {
    __shared__ uint32_t bins[BINS];
    __shared__ uint32_t counter;
    const Item item = items[blockIdx.x];
    uint32_t candidates = item.count - item.first;
    Floor found = {{ALL, 0}, 0, 0};
    if (floor >= candidates) {
        found = {{0, ALL}, candidates, 0};
    } else if (floor > 0) {
        auto each = [&](auto add) {
            for (uint32_t slot = item.first + threadIdx.x; slot < item.count; slot += blockDim.x)
                add(score_key(scores[item.extra + slot]), 1u);
        };
        Cut cut = radix_cut(each, floor, bins);
        found = {cut, floor, count_key(item, scores, cut.key, &counter) - cut.ties};
    }
    if (threadIdx.x == 0) floors[blockIdx.x] = found;
}
REGISTER_KERNEL(select_heads)

// Pool p has the items p, p + pools, ...; its heads keep `take` candidates on average.
extern "C" __global__ void select_pools(const Item *items, const float *scores, const Floor *floors,
                                        Cut *cuts, uint32_t heads, uint32_t pools, uint32_t take) {
    __shared__ uint32_t bins[BINS];
    __shared__ uint32_t counter;
    uint32_t left = 0, remaining = 0;
    for (uint32_t head = blockIdx.x; head < heads; head += pools) {
        left += take - floors[head].own;
        remaining += items[head].count - items[head].first - floors[head].own;
    }
    Cut pool = {ALL, 0};
    if (left >= remaining) {
        pool = {0, ALL};
    } else if (left > 0) {
        auto each = [&](auto add) {
            for (uint32_t head = blockIdx.x; head < heads; head += pools) {
                const Item item = items[head];
                const Floor floor = floors[head];
                for (uint32_t slot = item.first + threadIdx.x; slot < item.count;
                     slot += blockDim.x) {
                    uint32_t key = score_key(scores[item.extra + slot]);
                    if (key < floor.cut.key) add(key, 1u);
                }
                if (threadIdx.x == 0 && floor.rest > 0) add(floor.cut.key, floor.rest);
            }
        };
        pool = radix_cut(each, left, bins);
    }
    for (uint32_t head = blockIdx.x; head < heads; head += pools) {
        const Floor floor = floors[head];
        Cut cut = floor.cut;
        if (pool.key < floor.cut.key) {
            // Whatever the floor left of its key is above the pool's cut.
            uint32_t ties =
                pool.ties == ALL
                    ? ALL
                    : min(pool.ties, count_key(items[head], scores, pool.key, &counter));
            cut = {pool.key, ties};
            if (pool.ties != ALL) pool.ties -= ties;
        } else if (pool.key == floor.cut.key && floor.cut.ties != ALL) {
            uint32_t ties = min(pool.ties, floor.rest);
            cut.ties += ties;
            if (pool.ties != ALL) pool.ties -= ties;
        }
        if (threadIdx.x == 0) cuts[head] = cut;
    }
}
REGISTER_KERNEL(select_pools)

// Writes the slots that `stays` names to `keeps` and the others to `losts`, both from `output` on,
// and to `counts` how many stay and how many of them are in their places. `stays` is asked by all
// threads for neighbouring slots.
template <class Stays>
__device__ inline void write_lists(const Item &item, Stays stays, uint32_t *counts, uint32_t *keeps,
                                   uint32_t *losts) {
    __shared__ uint32_t partial[32];
    uint32_t kept = 0;
    if (threadIdx.x == 0) counts[1] = item.len;
    __syncthreads();
    for (uint32_t base = 0; base < item.len; base += blockDim.x) {
        uint32_t slot = base + threadIdx.x, total;
        bool inside = slot < item.len;
        bool stay = stays(slot, inside) && inside;
        uint32_t rank = kept + block_rank(stay, partial, total);
        if (stay) keeps[item.output + rank] = slot;
        if (inside && !stay) {
            losts[item.output + slot - rank] = slot;
            if (slot == rank) counts[1] = slot;
        }
        kept += total;
    }
    if (threadIdx.x == 0) counts[0] = kept;
}

extern "C" __global__ void select_lists(const Item *items, const float *scores, const Cut *cuts,
                                        uint32_t *counts, uint32_t *keeps, uint32_t *losts) {
    __shared__ uint32_t partial[32];
    const Item item = items[blockIdx.x];
    const Cut cut = cuts[blockIdx.x];
    uint32_t ties = 0;
    auto stays = [&](uint32_t slot, bool inside) {
        bool candidate = inside && slot >= item.first && slot < item.count;
        uint32_t key = candidate ? score_key(scores[item.extra + slot]) : 0, total;
        bool tied = candidate && key == cut.key;
        uint32_t rank = ties + block_rank(tied, partial, total);
        ties += total;
        return !candidate || key > cut.key || (tied && rank < cut.ties);
    };
    write_lists(item, stays, counts + 2 * blockIdx.x, keeps, losts);
}
REGISTER_KERNEL(select_lists)

// `chosen` has a byte for every slot, from `extra` on.
extern "C" __global__ void keep_lists(const Item *items, const unsigned char *chosen,
                                      uint32_t *counts, uint32_t *keeps, uint32_t *losts) {
    const Item item = items[blockIdx.x];
    auto stays = [&](uint32_t slot, bool inside) {
        return inside && chosen[item.extra + slot] != 0;
    };
    write_lists(item, stays, counts + 2 * blockIdx.x, keeps, losts);
}
REGISTER_KERNEL(keep_lists)
