// Streams, events that order them, captures of what is asked of them, and graphs made of captures.
#include <algorithm>
#include <set>

#include "faults.hpp"
#include "state.hpp"

// Recorded work and what it comes after, by position.
struct Node {
    Action action;
    std::vector<size_t> after;
    uint64_t lane;
};

struct Capture {
    std::vector<Node> nodes;
    int mode;
    std::thread::id thread;
    Stream* origin;
    bool is_valid = true, is_over = false;
};

struct Stream {
    uint64_t lane;
    // Whether it and the legacy stream wait for each other.
    bool is_blocking;
    TaskPtr last;
    std::shared_ptr<Capture> capture;
    // What comes next in a capture comes after these nodes.
    std::vector<size_t> last_nodes;
};

struct Event {
    bool has_time;
    // Where it was recorded last: behind a task, or behind nodes of a capture.
    TaskPtr task;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> nodes;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Exec {
    std::vector<Node> nodes;
    // End of the last launch: launches of a graph do not overlap.
    TaskPtr last;
};

enum Mode { GLOBAL, THREAD_LOCAL, RELAXED };
constexpr unsigned DISABLE_TIMING = 2, NON_BLOCKING = 1;

static std::shared_ptr<Stream> legacy() {
    static const auto stream = std::make_shared<Stream>(Stream{0, true, nullptr, nullptr, {}});
    return stream;
}

std::shared_ptr<Stream> stream_of(void* handle) {
    return (uintptr_t)handle <= 1 ? legacy() : driver.streams.find(handle);
}

bool is_capturing(const Stream& stream) { return stream.capture != nullptr; }

Result refuse_capture(Stream& stream) {
    stream.capture->is_valid = false;
    return STREAM_CAPTURE_UNSUPPORTED;
}

Result check_unsafe_call() {
    bool is_safe = true;
    for (auto& [_, stream] : driver.streams.all) {
        if (!stream->capture) continue;
        Capture& capture = *stream->capture;
        const bool ours = capture.thread == std::this_thread::get_id();
        if (capture.mode == GLOBAL || (capture.mode == THREAD_LOCAL && ours)) capture.is_valid = is_safe = false;
    }
    return is_safe ? SUCCESS : STREAM_CAPTURE_UNSUPPORTED;
}

// What comes next in a stream that is not capturing comes after these.
static std::vector<TaskPtr> before(Stream& stream) {
    std::vector<TaskPtr> after{stream.last};
    if (stream.lane == 0) {
        for (auto& [_, other] : driver.streams.all)
            if (other->is_blocking) after.push_back(other->last);
    } else if (stream.is_blocking) {
        after.push_back(legacy()->last);
    }
    return after;
}

static Result push(Stream& stream, Action action, std::vector<TaskPtr> after) {
    if (stream.lane == 0) {
        bool is_implied = false;
        for (auto& [_, other] : driver.streams.all) {
            if (!other->is_blocking || !other->capture) continue;
            other->capture->is_valid = false;
            is_implied = true;
        }
        if (is_implied) return STREAM_CAPTURE_IMPLICIT;
    }
    stream.last = driver.queue.add(stream.lane, std::move(action), std::move(after));
    return SUCCESS;
}

Result enqueue(Stream& stream, std::function<void()> work) {
    auto action = std::make_shared<const std::function<void()>>(std::move(work));
    if (!stream.capture) return push(stream, std::move(action), before(stream));
    if (!stream.capture->is_valid) return STREAM_CAPTURE_INVALIDATED;
    stream.capture->nodes.push_back({std::move(action), stream.last_nodes, stream.lane});
    stream.last_nodes = {stream.capture->nodes.size() - 1};
    return SUCCESS;
}

Result enqueue_and_finish(Stream& stream, std::function<void()> work) {
    if (const Result error = enqueue(stream, std::move(work))) return error;
    driver.queue.finish(stream.last);
    return driver.failure;
}

// For libraries that ask for work of their own: `run(data)`, once or many times, then `drop(data)`.
API Result standInEnqueue(void* handle, void (*run)(void*), void* data, void (*drop)(void*)) {
    Entry entry;
    std::shared_ptr<void> keep(data, drop);
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    return stream ? enqueue(*stream, [=] { run(keep.get()); }) : INVALID_HANDLE;
}

void forget_objects() {
    driver.queue.clear();
    driver.streams.all.clear();
    driver.events.all.clear();
    driver.graphs.all.clear();
    driver.execs.all.clear();
    driver.functions.all.clear();
    driver.modules.all.clear();
    *legacy() = {0, true, nullptr, nullptr, {}};
}

// Streams.

API Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

API Result cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (!handle || flags > NON_BLOCKING) return INVALID_VALUE;
    static uint64_t lanes = 0;
    *handle = driver.streams.add(
        std::make_shared<Stream>(Stream{++lanes, flags != NON_BLOCKING, nullptr, nullptr, {}}));
    return SUCCESS;
}

API Result cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

// What was asked of the stream is done all the same.
API Result cuStreamDestroy_v2(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = driver.streams.find(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) refuse_capture(*stream);
    driver.streams.remove(handle);
    return SUCCESS;
}

API Result cuStreamSynchronize(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return refuse_capture(*stream);
    if (stream->lane != 0) driver.queue.finish(stream->last);
    // The legacy stream's end comes after all that it waits for.
    else if (const Result error = enqueue_and_finish(*stream, [] {})) return error;
    return driver.failure;
}

// Who asks again finds it done: the first time it is not, whatever there is to do.
static Result query(const TaskPtr& task) {
    if (!task || task->done) return SUCCESS;
    driver.queue.finish(task);
    return driver.failure ? driver.failure : NOT_READY;
}

API Result cuStreamQuery(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    return stream->capture ? refuse_capture(*stream) : query(stream->last);
}

API Result cuStreamWaitEvent(void* handle, void* event_handle, unsigned flags) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    const auto event = driver.events.find(event_handle);
    if (!stream || !event) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    if (!event->capture) {
        if (stream->capture && event->task) {
            stream->capture->is_valid = false;
            return STREAM_CAPTURE_ISOLATION;
        }
        auto after = before(*stream);
        after.push_back(event->task);
        return event->task ? push(*stream, nullptr, std::move(after)) : SUCCESS;
    }
    if (!event->capture->is_valid) return STREAM_CAPTURE_INVALIDATED;
    if (event->capture->is_over) return CAPTURED_EVENT;
    if (stream->lane == 0) {
        event->capture->is_valid = false;
        return STREAM_CAPTURE_IMPLICIT;
    }
    if (!stream->capture) {
        stream->capture = event->capture;
        stream->last_nodes = event->nodes;
    } else if (stream->capture == event->capture) {
        std::set<size_t> both(stream->last_nodes.begin(), stream->last_nodes.end());
        both.insert(event->nodes.begin(), event->nodes.end());
        stream->last_nodes.assign(both.begin(), both.end());
    } else {
        stream->capture->is_valid = event->capture->is_valid = false;
        return STREAM_CAPTURE_MERGE;
    }
    return SUCCESS;
}

// Captures.

API Result cuStreamBeginCapture_v2(void* handle, int mode) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
    if (stream->lane == 0) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = std::make_shared<Capture>();
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->origin = stream.get();
    stream->last_nodes.clear();
    return SUCCESS;
}

API Result cuStreamIsCapturing(void* handle, int* status) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->is_valid ? 1 : 2;
    return SUCCESS;
}

// For the stand-in of cuBLASLt: whether any stream is captured.
API int standInIsCapturing() {
    const std::lock_guard<std::mutex> lock(driver.mutex);
    for (auto& [_, stream] : driver.streams.all)
        if (stream->capture) return true;
    return false;
}

// These nodes and all that they come after.
static std::set<size_t> all_before(const std::vector<Node>& nodes, std::vector<size_t> open) {
    std::set<size_t> all;
    while (!open.empty()) {
        const size_t node = open.back();
        open.pop_back();
        if (all.insert(node).second) open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
    }
    return all;
}

API Result cuStreamEndCapture(void* handle, void** graph) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *graph = nullptr;
    const auto capture = stream->capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->origin != stream.get()) {
        capture->is_valid = false;
        return STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != RELAXED && capture->thread != std::this_thread::get_id()) return STREAM_CAPTURE_WRONG_THREAD;
    const std::set<size_t> joined = all_before(capture->nodes, stream->last_nodes);
    bool all_joined = true;
    for (auto& [_, other] : driver.streams.all) {
        if (other->capture != capture) continue;
        for (size_t node : other->last_nodes) all_joined &= joined.count(node) > 0;
        other->capture = nullptr;
        other->last_nodes.clear();
    }
    capture->is_over = true;
    if (!capture->is_valid || fault("captures")) return STREAM_CAPTURE_INVALIDATED;
    if (!all_joined) return STREAM_CAPTURE_UNJOINED;
    *graph = driver.graphs.add(std::make_shared<Graph>(Graph{std::move(capture->nodes)}));
    return SUCCESS;
}

// Graphs.

API Result cuGraphInstantiateWithFlags(void** handle, void* graph_handle, unsigned long long flags) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto graph = driver.graphs.find(graph_handle);
    if (!graph) return INVALID_HANDLE;
    constexpr unsigned long long ON_DEVICE = 4, ALL = 15;
    if (flags & ~ALL) return INVALID_VALUE;
    if (flags & ON_DEVICE) return NOT_SUPPORTED;
    *handle = driver.execs.add(std::make_shared<Exec>(Exec{graph->nodes, nullptr}));
    return SUCCESS;
}

API Result cuGraphUpload(void* handle, void* stream_handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto stream = stream_of(stream_handle);
    if (!driver.execs.find(handle) || !stream) return INVALID_HANDLE;
    return stream->capture ? refuse_capture(*stream) : SUCCESS;
}

API Result cuGraphLaunch(void* handle, void* stream_handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto exec = driver.execs.find(handle);
    const auto stream = stream_of(stream_handle);
    if (!exec || !stream) return INVALID_HANDLE;
    if (stream->capture) return NOT_SUPPORTED;  // a graph within a graph
    auto first = before(*stream);
    first.push_back(exec->last);
    // A graph with nothing in it comes after them as well.
    std::vector<TaskPtr> tasks, all = first;
    for (const Node& node : exec->nodes) {
        std::vector<TaskPtr> after;
        for (size_t other : node.after) after.push_back(tasks[other]);
        if (after.empty()) after = first;
        tasks.push_back(driver.queue.add(node.lane, node.action, std::move(after)));
        all.push_back(tasks.back());
    }
    const Result error = push(*stream, nullptr, std::move(all));
    exec->last = stream->last;
    return error;
}

API Result cuGraphExecDestroy(void* handle) {
    Entry entry(false);
    if (entry.failure) return entry.failure;
    return driver.execs.remove(handle) ? SUCCESS : INVALID_VALUE;
}

API Result cuGraphDestroy(void* handle) {
    Entry entry(false);
    if (entry.failure) return entry.failure;
    return driver.graphs.remove(handle) ? SUCCESS : INVALID_VALUE;
}

// Events.

API Result cuEventCreate(void** handle, unsigned flags) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (!handle || flags > 7) return INVALID_VALUE;
    *handle = driver.events.add(std::make_shared<Event>(Event{!(flags & DISABLE_TIMING), nullptr, nullptr, {}}));
    return SUCCESS;
}

// What waits for the event goes on waiting.
API Result cuEventDestroy_v2(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    return driver.events.remove(handle) ? SUCCESS : INVALID_HANDLE;
}

API Result cuEventRecord(void* handle, void* stream_handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto event = driver.events.find(handle);
    const auto stream = stream_of(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    if (stream->capture && !stream->capture->is_valid) return STREAM_CAPTURE_INVALIDATED;
    event->capture = stream->capture;
    event->nodes = stream->last_nodes;
    event->task = nullptr;
    if (stream->capture) return SUCCESS;
    const Result error = push(*stream, nullptr, before(*stream));
    event->task = stream->last;
    return error;
}

// An event of a capture is nothing that happens.
static Result refuse_event(Event& event) {
    event.capture->is_valid = false;
    return CAPTURED_EVENT;
}

API Result cuEventSynchronize(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto event = driver.events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return refuse_event(*event);
    driver.queue.finish(event->task);
    return driver.failure;
}

API Result cuEventQuery(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto event = driver.events.find(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return refuse_event(*event);
    if (const Result error = check_unsafe_call()) return error;
    return query(event->task);
}

API Result cuEventElapsedTime_v2(float* milliseconds, void* from_handle, void* to_handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto from = driver.events.find(from_handle), to = driver.events.find(to_handle);
    if (!from || !to || !from->has_time || !to->has_time) return INVALID_HANDLE;
    if (from->capture || to->capture) return CAPTURED_EVENT;
    if (!from->task || !to->task) return INVALID_HANDLE;
    if (!from->task->done || !to->task->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->task->end - from->task->end).count();
    return SUCCESS;
}

API Result cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}
