// A cuDNN that computes nothing. Usually it is too old for anything, and stands before one that this machine may have: that
// would ask the stand-ins for what they do not know. With faults that need one (faults.hpp) it is new enough, takes every
// description, and fails where it is told to.
//
// Names and numbers are those of cudnn_graph.h.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "faults.hpp"

#define API extern "C" __attribute__((visibility("default")))

enum Status : int { SUCCESS = 0, BAD_PARAM = 2000, EXECUTION_FAILED = 5000 };
enum AttributeType : int { INT64 = 3, CHAR = 24, DESCRIPTOR = 15 };

API size_t cudnnGetVersion() { return fault("dnn-plans") || fault("dnn-execution") ? 91900 : 0; }

API Status cudnnCreate(void** handle) {
    static char the_handle;
    *handle = &the_handle;
    return SUCCESS;
}

API Status cudnnDestroy(void*) { return SUCCESS; }

API Status cudnnSetStream(void*, void*) { return SUCCESS; }

API void cudnnGetLastErrorString(char* message, size_t bytes) {
    if (bytes) strncpy(message, "a fault that was asked for", bytes), message[bytes - 1] = 0;
}

API const char* cudnnGetErrorString(Status) { return "a fault that was asked for"; }

API Status cudnnBackendCreateDescriptor(int, void** descriptor) {
    *descriptor = new char;
    return SUCCESS;
}

API Status cudnnBackendDestroyDescriptor(void* descriptor) {
    delete (char*)descriptor;
    return SUCCESS;
}

API Status cudnnBackendSetAttribute(void* descriptor, int, int, int64_t count, const void* values) {
    return descriptor && (values || !count) ? SUCCESS : BAD_PARAM;
}

API Status cudnnBackendFinalize(void* descriptor) { return descriptor ? SUCCESS : BAD_PARAM; }

// One engine, if any; numbers are 0; texts are empty objects.
API Status cudnnBackendGetAttribute(
    void* descriptor, int, int type, int64_t room, int64_t* count, void* values) {
    if (!descriptor || !count) return BAD_PARAM;
    if (type == DESCRIPTOR) {
        *count = fault("dnn-plans") ? 0 : 1;
    } else if (type == CHAR) {
        *count = 2;
        if (room >= 2) memcpy(values, "{}", 2);
    } else if (type == INT64) {
        *count = 1;
        if (room >= 1) memset(values, 0, sizeof(int64_t));
    } else {
        return BAD_PARAM;
    }
    return SUCCESS;
}

API Status cudnnBackendExecute(void*, void*, void*) { return EXECUTION_FAILED; }
