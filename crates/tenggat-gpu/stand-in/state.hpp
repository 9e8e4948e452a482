// What the parts of the driver's stand-in share. It has one device with one context, and one lock.
//
// Names and numbers are those of the CUDA driver API; its documentation decides what a call does.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "work.hpp"

#define API extern "C" __attribute__((visibility("default")))

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_MERGE = 902,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_UNJOINED = 904,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};

// Shared memory of a block: what a launch may ask for, and what it may after the function's attribute was raised.
constexpr unsigned SHARED = 48 << 10, MOST_SHARED = 227 << 10;

// Objects by handle. Handles never come again, so that one that is gone is not taken for another.
template <class T>
class Handles {
  public:
    void* add(std::shared_ptr<T> object) {
        next += 16;
        all[next] = std::move(object);
        return (void*)next;
    }
    std::shared_ptr<T> find(void* handle) const {
        const auto found = all.find((uintptr_t)handle);
        return found == all.end() ? nullptr : found->second;
    }
    bool remove(void* handle) { return all.erase((uintptr_t)handle) > 0; }

    std::map<uintptr_t, std::shared_ptr<T>> all;

  private:
    uintptr_t next = 0x1000;
};

struct Capture;
struct Event;
struct Exec;
struct Function;
struct Graph;
struct Module;
struct Pinned;
struct Stream;

struct Driver {
    std::mutex mutex;
    bool is_initialised = false;
    // How often the context is held.
    unsigned retained = 0;
    // What work that was done later came to; nothing goes on after it.
    Result failure = SUCCESS;
    Queue queue;
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Graph> graphs;
    Handles<Exec> execs;
    Handles<Module> modules;
    Handles<Function> functions;
    // By address: bytes of the device's memory, and the host's memory that is pinned.
    std::map<uint64_t, size_t> memory;
    std::map<uintptr_t, std::shared_ptr<Pinned>> pinned;
    size_t used = 0;
};
extern Driver driver;
// The context that is the calling thread's own.
extern thread_local void* current_context;

// A call, most of which need the context in their thread: holds the lock, and says why the call cannot be.
struct Entry {
    explicit Entry(bool needs_context = true);
    const std::lock_guard<std::mutex> lock;
    Result failure;
};

// Forgets all objects but the device's memory.
void forget_objects();
// Frees the device's and the pinned memory.
void forget_memory();

// The stream of a handle, which may be the legacy stream's; none if there is none.
std::shared_ptr<Stream> stream_of(void* handle);
bool is_capturing(const Stream& stream);
// Asks for work, or records it.
Result enqueue(Stream& stream, std::function<void()> work);
// The same, and waits for it.
Result enqueue_and_finish(Stream& stream, std::function<void()> work);
// Ends the usefulness of the capture that a stream is part of.
Result refuse_capture(Stream& stream);
// Says whether a call that may wait or touch all streams is allowed, now and in this thread.
Result check_unsafe_call();
