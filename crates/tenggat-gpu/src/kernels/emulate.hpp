// Runs kernels on a processor: every CUDA thread of a block is a fiber, and barriers and shuffles hand over to the next.
// A warp runs as far as it comes before another does. Warps, and threads within a warp, come in random order: another one
// in every block, but the same in every run with the same TENGGAT_EMULATED_SEED. It shows wrong indices, wrong sums and
// missing barriers, and with races.hpp every race on shared memory; it shows nothing of speed.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <algorithm>
#include <cstring>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define EMULATED 1
// The functions that are looked up by name; all else is the module's own.
#define EXPORTED __attribute__((visibility("default")))
#define __global__ EXPORTED
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

// What is not part of a kernel: its memory accesses are not watched (races.hpp).
#define UNWATCHED __attribute__((no_sanitize("thread")))

using std::max;
using std::min;

namespace emulated {

struct Index {
    unsigned x, y, z;
};

#if defined(__x86_64__)
// The C library's contexts save the signal mask by two calls of the kernel; this is a hundred times faster.
using Context = void*;  // stack pointer, with the registers that calls keep below it
extern "C" void emulated_switch(Context* from, Context to);
asm(R"(
    .text
emulated_switch:
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
)");
UNWATCHED inline void prepare(Context& context, void* stack, size_t bytes, void (*run)()) {
    void** top = (void**)(((uintptr_t)stack + bytes) & ~(uintptr_t)15);
    top[-2] = (void*)run;
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    context = top - 8;
}
UNWATCHED inline void hand_over(Context& from, Context& to) { emulated_switch(&from, to); }
#else
using Context = ucontext_t;
UNWATCHED inline void prepare(Context& context, void* stack, size_t bytes, void (*run)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, run, 0);
}
UNWATCHED inline void hand_over(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

struct Fiber {
    Context context;
    void* stack;
    Index index;
    bool done;
    unsigned block_barriers, warp_barriers;
    // Of the warp's barriers those that order accesses of memory, as shuffles do not.
    unsigned warp_syncs;
};

constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 256 << 10;

inline Fiber fibers[MOST_THREADS];
inline Context scheduler;
inline unsigned current, threads;
inline Index block_index, block_dim, grid_dim;
inline void (*entry)(void*);
inline void* data;
alignas(64) inline unsigned char dynamic_shared[256 << 10];
alignas(16) inline unsigned char exchanged[MOST_THREADS][16];
// Number of the block among all that this module has run.
inline uint32_t block_number;
// What was wrong with the launch, if anything was.
inline char complaint[256];

inline uint32_t random_state;

// Numbers that look random (xorshift, Marsaglia 2003).
UNWATCHED inline uint32_t draw() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// Begins the numbers of a block.
UNWATCHED inline void seed_block() {
    static const uint32_t seed = [] {
        const char* set = getenv("TENGGAT_EMULATED_SEED");
        return set ? (uint32_t)strtoul(set, nullptr, 10) : 0;
    }();
    random_state = 2654435761u * (seed + 7919 * block_index.x + 104729 * block_index.y + 1299709 * block_index.z + 1);
    random_state |= 1;
    for (int i = 0; i < 4; i++) draw();
}

UNWATCHED inline void yield() { hand_over(fibers[current].context, scheduler); }

// Waits until all threads in a range have come as far, or ended.
UNWATCHED inline void wait(unsigned from, unsigned to, unsigned Fiber::*barriers) {
    const unsigned mine = ++(fibers[current].*barriers);
    for (;;) {
        while (from < to && (fibers[from].done || fibers[from].*barriers >= mine)) from++;
        if (from == to) return;
        yield();
    }
}

UNWATCHED inline void sync_block() { wait(0, threads, &Fiber::block_barriers); }

UNWATCHED inline void sync_warp() {
    const unsigned from = current / 32 * 32;
    wait(from, from + 32 < threads ? from + 32 : threads, &Fiber::warp_barriers);
}

// The barrier that kernels ask for.
UNWATCHED inline void sync_warp_and_memory() {
    sync_warp();
    fibers[current].warp_syncs++;
}

template <class T>
UNWATCHED T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 16, "too large to shuffle");
    const unsigned me = current, warp = me / 32 * 32;
    memcpy(exchanged[me], &value, sizeof(T));
    sync_warp();
    T got;
    memcpy(&got, exchanged[warp + lane % 32], sizeof(T));
    sync_warp();
    return got;
}

UNWATCHED inline void run_fiber() {
    entry(data);
    fibers[current].done = true;
    yield();
}

// How far the threads of a range have come.
UNWATCHED inline uint64_t progress(unsigned from, unsigned to) {
    uint64_t sum = 0;
    for (; from < to; from++) {
        sum += (uint64_t)fibers[from].block_barriers + fibers[from].warp_barriers + fibers[from].done;
    }
    return sum;
}

// Takes a warp as far as it comes without the others. Whether it has not ended.
UNWATCHED inline bool run_warp(unsigned warp) {
    const unsigned from = warp * 32, to = min(from + 32, threads);
    bool running = true;
    for (uint64_t before = ~(uint64_t)0; running && before != progress(from, to);) {
        before = progress(from, to);
        running = false;
        const unsigned first = draw(), step = draw() | 1;
        for (unsigned i = 0; i < 32; i++) {
            current = from + (first + i * step) % 32;
            if (current >= to || fibers[current].done) continue;
            hand_over(scheduler, fibers[current].context);
            running |= !fibers[current].done;
        }
    }
    return running;
}

UNWATCHED inline void run_block() {
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        if (!fiber.stack) fiber.stack = malloc(STACK);
        prepare(fiber.context, fiber.stack, STACK, run_fiber);
        fiber.index = {i, 0, 0};
        fiber.done = false;
        fiber.block_barriers = fiber.warp_barriers = fiber.warp_syncs = 0;
    }
    block_number++;
    seed_block();
    const unsigned warps = (threads + 31) / 32;
    unsigned order[MOST_THREADS / 32];
    for (unsigned i = 0; i < warps; i++) order[i] = i;
    for (bool running = true; running;) {
        running = false;
        for (unsigned i = warps; i > 1; i--) std::swap(order[i - 1], order[draw() % i]);
        for (unsigned i = 0; i < warps; i++) running |= run_warp(order[i]);
    }
}

}  // namespace emulated

#define threadIdx (emulated::fibers[emulated::current].index)
#define blockIdx (emulated::block_index)
#define blockDim (emulated::block_dim)
#define gridDim (emulated::grid_dim)
#define __syncthreads() emulated::sync_block()
#define __syncwarp(...) emulated::sync_warp_and_memory()
#define DYNAMIC_SHARED(T, name) T* name = (T*)emulated::dynamic_shared

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::exchange(value, (emulated::current % 32) ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulated::exchange(value, lane);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
// Kept apart, so that no compiler makes one instruction of them.
__attribute__((noinline)) inline float __fmul_rn(float x, float y) { return x * y; }
__attribute__((noinline)) inline float __fadd_rn(float x, float y) { return x + y; }

template <class T>
UNWATCHED T atomicAdd(T* at, T value) {
    const T before = *at;
    *at += value;
    return before;
}

// Runs `entry(data)` in every thread of every block of a grid, or of those blocks from `first` on along each axis. What was
// wrong, or null.
extern "C" EXPORTED UNWATCHED const char* emulate(
    void (*entry)(void*), void* data, const unsigned* grid, unsigned threads, const unsigned* first = nullptr) {
    static const unsigned ORIGIN[3] = {0, 0, 0};
    if (!first) first = ORIGIN;
    emulated::entry = entry;
    emulated::data = data;
    emulated::threads = threads;
    emulated::block_dim = {threads, 1, 1};
    emulated::grid_dim = {grid[0], grid[1], grid[2]};
    emulated::complaint[0] = 0;
    for (unsigned z = first[2]; z < grid[2]; z++)
        for (unsigned y = first[1]; y < grid[1]; y++)
            for (unsigned x = first[0]; x < grid[0]; x++) {
                emulated::block_index = {x, y, z};
                emulated::run_block();
            }
    return emulated::complaint[0] ? emulated::complaint : nullptr;
}
