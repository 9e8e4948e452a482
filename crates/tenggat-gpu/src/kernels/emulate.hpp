// Runs kernels on a processor: every CUDA thread of a block is a fiber, and barriers and shuffles hand over to the next.
// A warp runs as far as it comes before another does. It shows wrong indices, wrong sums and missing barriers; it shows
// nothing of speed, nor of races inside a warp.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <algorithm>
#include <cstring>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

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
inline void prepare(Context& context, void* stack, size_t bytes, void (*run)()) {
    void** top = (void**)(((uintptr_t)stack + bytes) & ~(uintptr_t)15);
    top[-2] = (void*)run;
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    context = top - 8;
}
inline void hand_over(Context& from, Context& to) { emulated_switch(&from, to); }
#else
using Context = ucontext_t;
inline void prepare(Context& context, void* stack, size_t bytes, void (*run)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, run, 0);
}
inline void hand_over(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

struct Fiber {
    Context context;
    void* stack;
    Index index;
    bool done;
    unsigned block_barriers, warp_barriers;
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

inline void yield() { hand_over(fibers[current].context, scheduler); }

// Waits until all threads in a range have come as far, or ended.
inline void wait(unsigned from, unsigned to, unsigned Fiber::*barriers) {
    const unsigned mine = ++(fibers[current].*barriers);
    for (;;) {
        while (from < to && (fibers[from].done || fibers[from].*barriers >= mine)) from++;
        if (from == to) return;
        yield();
    }
}

inline void sync_block() { wait(0, threads, &Fiber::block_barriers); }

inline void sync_warp() {
    const unsigned from = current / 32 * 32;
    wait(from, from + 32 < threads ? from + 32 : threads, &Fiber::warp_barriers);
}

template <class T>
T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 16, "too large to shuffle");
    const unsigned me = current, warp = me / 32 * 32;
    memcpy(exchanged[me], &value, sizeof(T));
    sync_warp();
    T got;
    memcpy(&got, exchanged[warp + lane % 32], sizeof(T));
    sync_warp();
    return got;
}

inline void run_fiber() {
    entry(data);
    fibers[current].done = true;
    yield();
}

// How far the threads of a range have come.
inline uint64_t progress(unsigned from, unsigned to) {
    uint64_t sum = 0;
    for (; from < to; from++) {
        sum += (uint64_t)fibers[from].block_barriers + fibers[from].warp_barriers + fibers[from].done;
    }
    return sum;
}

// Takes a warp as far as it comes without the others. Whether it has not ended.
inline bool run_warp(unsigned warp) {
    const unsigned from = warp * 32, to = min(from + 32, threads);
    bool running = true;
    for (uint64_t before = ~(uint64_t)0; running && before != progress(from, to);) {
        before = progress(from, to);
        running = false;
        for (current = from; current < to; current++) {
            if (fibers[current].done) continue;
            hand_over(scheduler, fibers[current].context);
            running |= !fibers[current].done;
        }
    }
    return running;
}

inline void run_block() {
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        if (!fiber.stack) fiber.stack = malloc(STACK);
        prepare(fiber.context, fiber.stack, STACK, run_fiber);
        fiber.index = {i, 0, 0};
        fiber.done = false;
        fiber.block_barriers = fiber.warp_barriers = 0;
    }
    // Warps go from the first to the last and back, the other way round in every second block: whoever relies on another
    // warp, before it or behind it, and does not wait for it, gets other numbers.
    const unsigned warps = (threads + 31) / 32;
    unsigned turn = block_index.x + block_index.y + block_index.z;
    for (bool running = true; running; turn++) {
        running = false;
        for (unsigned i = 0; i < warps; i++) running |= run_warp(turn % 2 ? warps - 1 - i : i);
    }
}

}  // namespace emulated

#define threadIdx (emulated::fibers[emulated::current].index)
#define blockIdx (emulated::block_index)
#define blockDim (emulated::block_dim)
#define gridDim (emulated::grid_dim)
#define __syncthreads() emulated::sync_block()
#define __syncwarp(...) emulated::sync_warp()
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
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at += value;
    return before;
}

// Runs `entry(data)` in every thread of every block of a grid.
extern "C" void emulate(
    void (*entry)(void*), void* data, const unsigned* grid, unsigned threads) {
    emulated::entry = entry;
    emulated::data = data;
    emulated::threads = threads;
    emulated::block_dim = {threads, 1, 1};
    emulated::grid_dim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                emulated::block_index = {x, y, z};
                emulated::run_block();
            }
}
