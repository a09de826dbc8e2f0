// The emulated device: scheduler of fibers, launch by name, halves. See device.h.
#include <utility>

#include "../kernels.cu"
#include "faulty.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <memory>
#include <string>
#include <unordered_map>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulated {

thread_local Block *block = nullptr;
thread_local Fiber *fiber = nullptr;

constexpr size_t STACK = 128 * 1024;
constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5;

#if defined(__x86_64__)
extern "C" void palimpsest_switch(void **save, void *to);
// Saves what the System V ABI says a call keeps, and continues at the other stack.
asm(R"(
.text
.globl palimpsest_switch
.type palimpsest_switch, @function
palimpsest_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size palimpsest_switch, .-palimpsest_switch
)");
#else
struct Contexts {
    ucontext_t main;
    std::vector<ucontext_t> fibers;
};
thread_local Contexts contexts;
#endif

struct Launch {
    void (*call)(void **);
    void **args;
    std::vector<unsigned char> stacks;
    void *main_stack = nullptr;
    bool failed = false;
    std::string error;
};
thread_local Launch *launch = nullptr;

std::unordered_map<std::string, void (*)(void **)> &kernels() {
    static std::unordered_map<std::string, void (*)(void **)> all;
    return all;
}

void add_kernel(const char *name, void (*call)(void **)) {
    kernels()[name] = call;
}

void suspend() {
#if defined(__x86_64__)
    palimpsest_switch(&fiber->stack_pointer, launch->main_stack);
#else
    swapcontext(&contexts.fibers[fiber - block->fibers.data()], &contexts.main);
#endif
}

void fail(const char *what, const char *detail) {
    char text[256];
    std::snprintf(text, sizeof text, "%s: %s (block %u,%u thread %u)", what, detail, block->index.x,
                  block->index.y, fiber->thread.x);
    if (!launch->failed) launch->error = text;
    launch->failed = true;
    fiber->state = State::Done;
    for (;;) suspend();
}

void barrier() {
    if (block->done > 0)
        fail("a thread has ended before a barrier that others reach", "__syncthreads");
    if (++block->at_barrier < block->fibers.size()) {
        fiber->state = State::AtBlock;
        suspend();
        return;
    }
    block->at_barrier = 0;
    for (Fiber &other : block->fibers)
        if (other.state == State::AtBlock) other.state = State::Ready;
}

static void run_fiber() {
    launch->call(launch->args);
    if (!fiber->copies.empty() && !launch->failed)
        fail("copies that nobody waits for", "copy_async");
    fiber->state = State::Done;
    ++block->done;
    for (;;) suspend();
}

static void start(size_t index) {
    unsigned char *stack = launch->stacks.data() + index * STACK;
#if defined(__x86_64__)
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + STACK - 64) & ~uintptr_t(15);
    void **slot = reinterpret_cast<void **>(top);
    slot[0] = reinterpret_cast<void *>(&run_fiber);
    for (int i = 1; i <= 6; ++i) slot[-i] = nullptr;
    block->fibers[index].stack_pointer = slot - 6;
#else
    ucontext_t &context = contexts.fibers[index];
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, run_fiber, 0);
#endif
}

static void resume(Fiber &next) {
    fiber = &next;
#if defined(__x86_64__)
    palimpsest_switch(&launch->main_stack, next.stack_pointer);
#else
    swapcontext(&contexts.main, &contexts.fibers[&next - block->fibers.data()]);
#endif
}

// Splitmix64.
static uint64_t draw(uint64_t &state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static std::vector<uint32_t> permutation(uint32_t count, uint64_t &state) {
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; ++i) order[i] = i;
    if (state != 0)
        for (uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[draw(state) % i]);
    return order;
}

static void run_block(uint64_t &random) {
    Block &b = *block;
    uint32_t warps = b.fibers.size() / 32;
    b.at_barrier = b.done = 0;
    b.warps.assign(warps, Warp{});
    for (size_t i = 0; i < b.fibers.size(); ++i) {
        Fiber &f = b.fibers[i];
        uint32_t at = i;
        f.thread = {at % b.block.x, at / b.block.x % b.block.y, at / b.block.x / b.block.y};
        f.lane = i % 32, f.warp = i / 32, f.state = State::Ready, f.group = 0;
        f.copies.clear();
        start(i);
    }
    auto order = permutation(warps, random), lanes = permutation(32, random);
    for (;;) {
        bool ran = false;
        for (uint32_t warp : order)
            for (bool again = true; again;) {
                again = false;
                for (uint32_t lane : lanes) {
                    Fiber &next = b.fibers[warp * 32 + lane];
                    if (next.state != State::Ready) continue;
                    resume(next);
                    ran = again = true;
                    if (launch->failed) return;
                }
            }
        if (b.done == b.fibers.size()) return;
        if (!ran) {
            launch->failed = true;
            launch->error =
                "a barrier or a warp's instruction was reached by some of its threads only";
            return;
        }
    }
}

// ---- halves
// ----------------------------------------------------------------------------------------------

static float decode_half(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
             fraction = bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        float magnitude = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -magnitude : magnitude;
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

float half_to_float(uint16_t bits) {
    static const std::vector<float> *table = [] {
        auto *all = new std::vector<float>(65536);
        for (uint32_t i = 0; i < 65536; ++i) (*all)[i] = decode_half((uint16_t)i);
        return all;
    }();
    return (*table)[bits];
}

uint16_t float_to_half(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000u) {
        // Subnormal: the unit is 2^-24; adding 0.5 of the right binade rounds to nearest, ties to
        // even.
        float scaled = __uint_as_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (__float_as_uint(scaled) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

} // namespace emulated

// Runs a kernel. `seed` 0 keeps the natural order of blocks and threads. Returns 0, or 1 with a
// text in `error`.
extern "C" int palimpsest_emulated_launch(const char *name, const uint32_t *grid,
                                          const uint32_t *threads, uint32_t shared_bytes,
                                          uint64_t seed, void **args, char *error,
                                          size_t error_bytes) {
    using namespace emulated;
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        std::snprintf(error, error_bytes, "there is no kernel `%s`", name);
        return 1;
    }
    uint32_t count = threads[0] * threads[1] * threads[2];
    if (count == 0 || count % 32 != 0 || count > 1024 || shared_bytes > 227 * 1024 ||
        grid[1] > 65535 || grid[2] > 65535) {
        std::snprintf(error, error_bytes,
                      "a launch that no device takes: %u threads, %u bytes of shared memory", count,
                      shared_bytes);
        return 1;
    }
    static thread_local std::vector<unsigned char> stacks;
    if (stacks.size() < count * STACK) stacks.resize(count * STACK);
    Launch current{found->second, args, {}, nullptr, false, {}};
    current.stacks.swap(stacks);
    Block one{};
    std::vector<unsigned char> shared(shared_bytes + GUARD + 16);
    one.shared = reinterpret_cast<unsigned char *>(
        (reinterpret_cast<uintptr_t>(shared.data()) + 15) & ~uintptr_t(15));
    one.block = {threads[0], threads[1], threads[2]};
    one.grid = {grid[0], grid[1], grid[2]};
    one.fibers.resize(count);
#if !defined(__x86_64__)
    contexts.fibers.resize(count);
#endif
    launch = &current;
    block = &one;
    uint64_t random = seed;
    uint32_t blocks = grid[0] * grid[1] * grid[2];
    for (uint32_t index : permutation(blocks, random)) {
        one.index = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
        std::memset(one.shared, 0xff, shared_bytes);
        std::memset(one.shared + shared_bytes, GUARD_BYTE, GUARD - 16);
        run_block(random);
        for (size_t i = 0; i < GUARD - 16 && !current.failed; ++i)
            if (one.shared[shared_bytes + i] != GUARD_BYTE) {
                current.failed = true;
                current.error = "shared memory was written beyond its end";
            }
        if (current.failed) break;
    }
    stacks.swap(current.stacks);
    launch = nullptr;
    block = nullptr;
    fiber = nullptr;
    if (current.failed) std::snprintf(error, error_bytes, "%s: %s", name, current.error.c_str());
    return current.failed ? 1 : 0;
}
