// The device's memory and the host's that is pinned, and copies between them.
//
// Device memory ends at a page that nobody may touch, and is never given out a second time: a kernel that goes over the
// end, or uses what was freed, ends the process. What is new holds 0xff, which is NaN in every type of float.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "faults.hpp"
#include "state.hpp"

static const size_t PAGE = sysconf(_SC_PAGESIZE);
constexpr size_t ALIGNMENT = 512;
constexpr int RESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// What a copy holds on to, so that memory freed too early shows as other numbers and not as a crash.
struct Pinned {
    explicit Pinned(size_t bytes) : bytes(bytes), data(std::aligned_alloc(PAGE, round_up(bytes, PAGE))) {}
    ~Pinned() { std::free(data); }
    const size_t bytes;
    void* const data;
};

// Bytes that the device has.
static size_t total_bytes() {
    static const size_t total = [] {
        const char* set = std::getenv("TENGGAT_STAND_IN_BYTES");
        return set ? std::strtoull(set, nullptr, 10) : size_t(4) << 30;
    }();
    return total;
}

// Whether a range lies in one allocation.
static bool is_device(uint64_t address, size_t bytes) {
    auto found = driver.memory.upper_bound(address);
    if (found == driver.memory.begin()) return false;
    --found;
    const uint64_t offset = address - found->first;
    return offset <= found->second && bytes <= found->second - offset;
}

static std::shared_ptr<Pinned> pinned_of(const void* data, size_t bytes) {
    auto found = driver.pinned.upper_bound((uintptr_t)data);
    if (found == driver.pinned.begin()) return nullptr;
    --found;
    const size_t offset = (uintptr_t)data - found->first, there = found->second->bytes;
    return offset <= there && bytes <= there - offset ? found->second : nullptr;
}

// Does something with a range of the device's memory, if that is still there.
template <class F>
static auto on_device(uint64_t address, size_t bytes, F work) {
    return [=] {
        if (is_device(address, bytes))
            work();
        else
            driver.failure = ILLEGAL_ADDRESS;
    };
}

API Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = total_bytes();
    return device ? INVALID_DEVICE : SUCCESS;
}

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    Entry entry;
    if (entry.failure) return entry.failure;
    *total = total_bytes();
    *free = *total - driver.used;
    return SUCCESS;
}

API Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (!address || !bytes) return INVALID_VALUE;
    if (const Result error = check_unsafe_call()) return error;
    static std::atomic<unsigned> allocations;
    if (fault("allocation", allocations)) return OUT_OF_MEMORY;
    const size_t taken = round_up(bytes, ALIGNMENT), pages = round_up(taken, PAGE);
    if (taken > total_bytes() - driver.used) return OUT_OF_MEMORY;
    void* data = mmap(nullptr, pages + PAGE, PROT_NONE, RESERVED, -1, 0);
    if (data == MAP_FAILED || mprotect(data, pages, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    *address = (uint64_t)data + pages - taken;
    memset((void*)*address, 0xff, taken);
    driver.memory[*address] = bytes;
    driver.used += taken;
    return SUCCESS;
}

static void free_memory(uint64_t address, size_t bytes) {
    const size_t taken = round_up(bytes, ALIGNMENT), pages = round_up(taken, PAGE);
    // In the place of the memory comes nothing, for good.
    mmap((void*)(address + taken - pages), pages, PROT_NONE, RESERVED | MAP_FIXED, -1, 0);
    driver.used -= taken;
}

API Result cuMemFree_v2(uint64_t address) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (const Result error = check_unsafe_call()) return error;
    const auto found = driver.memory.find(address);
    if (found == driver.memory.end()) return INVALID_VALUE;
    driver.queue.finish_all();
    free_memory(address, found->second);
    driver.memory.erase(found);
    return driver.failure;
}

API Result cuMemHostAlloc(void** data, size_t bytes, unsigned) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (!data || !bytes) return INVALID_VALUE;
    if (const Result error = check_unsafe_call()) return error;
    auto pinned = std::make_shared<Pinned>(bytes);
    if (!pinned->data) return OUT_OF_MEMORY;
    *data = pinned->data;
    memset(*data, 0xff, bytes);
    driver.pinned[(uintptr_t)*data] = std::move(pinned);
    return SUCCESS;
}

API Result cuMemAllocHost_v2(void** data, size_t bytes) { return cuMemHostAlloc(data, bytes, 0); }

API Result cuMemFreeHost(void* data) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (const Result error = check_unsafe_call()) return error;
    const auto found = driver.pinned.find((uintptr_t)data);
    if (found == driver.pinned.end()) return INVALID_VALUE;
    memset(data, 0xff, found->second->bytes);
    driver.pinned.erase(found);
    return SUCCESS;
}

void forget_memory() {
    for (const auto& [address, bytes] : driver.memory) free_memory(address, bytes);
    driver.memory.clear();
    driver.pinned.clear();
}

// A copy to the device that may be recorded: from pinned memory, which is read when the copy is done; other memory is
// read now.
static Result copy_to(Stream& stream, uint64_t to, const void* from, size_t bytes) {
    if (!is_device(to, bytes)) return INVALID_VALUE;
    if (auto pinned = pinned_of(from, bytes))
        return enqueue(stream, on_device(to, bytes, [=, keep = pinned] { memcpy((void*)to, from, bytes); }));
    if (is_capturing(stream)) return refuse_capture(stream);
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    return enqueue(stream, on_device(to, bytes, [=] { memcpy((void*)to, staged->data(), bytes); }));
}

// A copy from the device, which writes when it is done, to pinned memory or not: pageable memory may be written before
// the call returns, but nobody promises that.
static Result copy_from(Stream& stream, void* to, uint64_t from, size_t bytes) {
    if (!is_device(from, bytes)) return INVALID_VALUE;
    auto pinned = pinned_of(to, bytes);
    if (!pinned && is_capturing(stream)) return refuse_capture(stream);
    return enqueue(stream, on_device(from, bytes, [=, keep = pinned] { memcpy(to, (const void*)from, bytes); }));
}

API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    return stream ? copy_to(*stream, to, from, bytes) : INVALID_HANDLE;
}

API Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    return stream ? copy_from(*stream, to, from, bytes) : INVALID_HANDLE;
}

API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (!is_device(to, bytes) || !is_device(from, bytes)) return INVALID_VALUE;
    const auto copy = [=] { memmove((void*)to, (const void*)from, bytes); };
    return enqueue(*stream, on_device(to, bytes, on_device(from, bytes, copy)));
}

// Copies that wait are work of the legacy stream: they wait for streams that are not bound to it no more than it does.
API Result cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (const Result error = check_unsafe_call()) return error;
    if (!is_device(to, bytes)) return INVALID_VALUE;
    const auto copy = [=] { memcpy((void*)to, from, bytes); };
    return enqueue_and_finish(*stream_of(nullptr), on_device(to, bytes, copy));
}

API Result cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (const Result error = check_unsafe_call()) return error;
    if (!is_device(from, bytes)) return INVALID_VALUE;
    const auto copy = [=] { memcpy(to, (const void*)from, bytes); };
    return enqueue_and_finish(*stream_of(nullptr), on_device(from, bytes, copy));
}

API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (!is_device(to, bytes)) return INVALID_VALUE;
    return enqueue(*stream, on_device(to, bytes, [=] { memset((void*)to, value, bytes); }));
}

API Result cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(to, value, bytes, nullptr);
}
