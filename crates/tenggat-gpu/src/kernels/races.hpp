// Watches shared memory for races, behind emulate.hpp: two threads of a block that access the same byte, one of them to
// write, without a barrier between. The compiler's instrumentation for ThreadSanitizer calls the functions at the end; its
// own runtime, which knows nothing of barriers and fibers, stays away.
#include <cstdio>

namespace emulated {

// The module's variables that begin as zeros, which are the shared ones of kernels and the emulation's own.
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;

struct Access {
    uint32_t block, block_barriers;
    uint16_t thread, warp_syncs;
};

// The last accesses of a byte. Of readers two different ones are enough: one of them is not the next writer.
struct History {
    Access write, reads[2];
};

inline History* histories;

// Whether nothing orders two accesses, the first of which was made before.
UNWATCHED inline bool is_race(const Access& a, const Access& b) {
    if (a.block != b.block || a.thread == b.thread || a.block_barriers != b.block_barriers) return false;
    return a.thread / 32 != b.thread / 32 || a.warp_syncs == b.warp_syncs;
}

UNWATCHED inline void complain(const char* what, const Access& before, const Access& now) {
    if (complaint[0]) return;
    snprintf(
        complaint, sizeof complaint,
        "a race on shared memory in block (%u, %u, %u): thread %u %s thread %u, without a barrier between", block_index.x,
        block_index.y, block_index.z, now.thread, what, before.thread);
}

UNWATCHED inline void watch(const void* address, size_t bytes, bool writes) {
    const uintptr_t begin = (uintptr_t)&__bss_start, at = (uintptr_t)address - begin;
    const size_t all = (uintptr_t)&_end - begin;
    if (at >= all) return;
    // Indices of threads are read all the time.
    if ((uintptr_t)address - (uintptr_t)fibers < sizeof fibers) return;
    if (!histories) histories = (History*)calloc(all, sizeof(History));
    const Fiber& fiber = fibers[current];
    const Access now{block_number, fiber.block_barriers, (uint16_t)current, (uint16_t)fiber.warp_syncs};
    for (size_t i = at; i < at + bytes && i < all; i++) {
        History& history = histories[i];
        if (is_race(history.write, now))
            complain(writes ? "overwrites what was written by" : "reads what was written by", history.write, now);
        if (writes) {
            for (const Access& read : history.reads)
                if (is_race(read, now)) complain("overwrites what was read by", read, now);
            history.write = now;
        } else {
            if (history.reads[0].thread != now.thread) history.reads[1] = history.reads[0];
            history.reads[0] = now;
        }
    }
}

}  // namespace emulated

#define WATCHED_AT(name, bytes, writes) \
    extern "C" UNWATCHED void __tsan_##name(void* at) { emulated::watch(at, bytes, writes); }
#define WATCHED(bytes)                            \
    WATCHED_AT(read##bytes, bytes, false)         \
    WATCHED_AT(write##bytes, bytes, true)         \
    WATCHED_AT(unaligned_read##bytes, bytes, false) \
    WATCHED_AT(unaligned_write##bytes, bytes, true)
WATCHED(1) WATCHED(2) WATCHED(4) WATCHED(8) WATCHED(16)
extern "C" {
UNWATCHED void __tsan_read_range(void* at, unsigned long bytes) { emulated::watch(at, bytes, false); }
UNWATCHED void __tsan_write_range(void* at, unsigned long bytes) { emulated::watch(at, bytes, true); }
UNWATCHED void __tsan_func_entry(void*) {}
UNWATCHED void __tsan_func_exit() {}
UNWATCHED void __tsan_init() {}
}
