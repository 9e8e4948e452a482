// Calls about the device and its context.
#include "state.hpp"

#include <cstdlib>
#include <cstring>

// There is one; its address is its handle.
static char the_context;

API Result cuInit(unsigned flags) {
    const std::lock_guard<std::mutex> lock(driver.mutex);
    driver.is_initialised = true;
    return flags ? INVALID_VALUE : SUCCESS;
}

API Result cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

API Result cuDeviceGetCount(int* count) {
    *count = 1;
    return driver.is_initialised ? SUCCESS : NOT_INITIALIZED;
}

API Result cuDeviceGet(int* device, int ordinal) {
    *device = 0;
    return !driver.is_initialised ? NOT_INITIALIZED : ordinal ? INVALID_DEVICE : SUCCESS;
}

API Result cuDeviceGetName(char* name, int length, int device) {
    if (device || length < 1) return device ? INVALID_DEVICE : INVALID_VALUE;
    strncpy(name, "stand-in", length);
    name[length - 1] = 0;
    return SUCCESS;
}

API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 1: *value = 1024; break;          // threads per block
        case 8: *value = SHARED; break;        // shared memory per block
        case 10: *value = 32; break;           // warp size
        case 16: *value = 132; break;          // multiprocessors
        case 75: *value = 9; break;            // compute capability, major
        case 76: *value = 0; break;            // and minor
        case 97: *value = MOST_SHARED; break;  // shared memory per block, opted in
        case 115: *value = 0; break;           // memory pools
        default: return INVALID_VALUE;
    }
    return device ? INVALID_DEVICE : SUCCESS;
}

API Result cuDevicePrimaryCtxRetain(void** context, int device) {
    const std::lock_guard<std::mutex> lock(driver.mutex);
    if (device) return INVALID_DEVICE;
    driver.retained++;
    *context = &the_context;
    return SUCCESS;
}

API Result cuDevicePrimaryCtxRelease_v2(int device) {
    const std::lock_guard<std::mutex> lock(driver.mutex);
    if (device || !driver.retained) return device ? INVALID_DEVICE : INVALID_CONTEXT;
    if (--driver.retained) return SUCCESS;
    forget_objects();
    forget_memory();
    driver.failure = SUCCESS;
    return SUCCESS;
}

API Result cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}

API Result cuCtxSetCurrent(void* context) {
    if (context && context != &the_context) return INVALID_CONTEXT;
    current_context = context;
    return SUCCESS;
}

API Result cuCtxGetDevice(int* device) {
    *device = 0;
    return current_context ? SUCCESS : INVALID_CONTEXT;
}

API Result cuCtxSynchronize() {
    Entry entry;
    if (entry.failure) return entry.failure;
    bool any = false;
    for (auto& [_, stream] : driver.streams.all)
        if (is_capturing(*stream)) any = refuse_capture(*stream);
    if (any) return STREAM_CAPTURE_UNSUPPORTED;
    driver.queue.finish_all();
    return driver.failure;
}

// Gives the case of an error its name.
#define NAMED(error) \
    case error: *text = "CUDA_ERROR_" #error; return SUCCESS;

API Result cuGetErrorName(Result error, const char** text) {
    switch (error) {
        case SUCCESS: *text = "CUDA_SUCCESS"; return SUCCESS;
        NAMED(INVALID_VALUE)
        NAMED(OUT_OF_MEMORY)
        NAMED(NOT_INITIALIZED)
        NAMED(INVALID_DEVICE)
        NAMED(INVALID_IMAGE)
        NAMED(INVALID_CONTEXT)
        NAMED(NO_BINARY_FOR_GPU)
        NAMED(INVALID_HANDLE)
        NAMED(ILLEGAL_STATE)
        NAMED(NOT_FOUND)
        NAMED(NOT_READY)
        NAMED(ILLEGAL_ADDRESS)
        NAMED(CONTEXT_IS_DESTROYED)
        NAMED(NOT_SUPPORTED)
        NAMED(STREAM_CAPTURE_UNSUPPORTED)
        NAMED(STREAM_CAPTURE_INVALIDATED)
        NAMED(STREAM_CAPTURE_MERGE)
        NAMED(STREAM_CAPTURE_UNMATCHED)
        NAMED(STREAM_CAPTURE_UNJOINED)
        NAMED(STREAM_CAPTURE_ISOLATION)
        NAMED(STREAM_CAPTURE_IMPLICIT)
        NAMED(CAPTURED_EVENT)
        NAMED(STREAM_CAPTURE_WRONG_THREAD)
    }
    *text = nullptr;
    return INVALID_VALUE;
}

API Result cuGetErrorString(Result error, const char** text) { return cuGetErrorName(error, text); }
