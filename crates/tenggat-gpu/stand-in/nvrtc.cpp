// NVRTC that compiles nothing: its machine code is the source, which the driver's stand-in compiles for the processor.
#include <cstring>
#include <string>

#include "image.hpp"

#define API extern "C" __attribute__((visibility("default")))

enum Result : int { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5 };

struct Program {
    std::string source, code;
};

API Result nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

API Result nvrtcCreateProgram(
    Program** program, const char* source, const char*, int headers, const char* const*, const char* const*) {
    if (!program || !source || headers) return INVALID_INPUT;
    *program = new Program{source, ""};
    return SUCCESS;
}

API Result nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

API Result nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    Image image;
    for (int i = 0; i < count; i++) {
        const std::string option = options[i], architecture = "--gpu-architecture=sm_";
        const auto starts = [&](const char* with) { return option.compare(0, strlen(with), with) == 0; };
        if (starts(architecture.c_str()))
            image.architecture = option.substr(architecture.size() - 3);
        else if (option != "--std=c++17" && option != "-default-device" && !starts("--ptxas-options="))
            return INVALID_OPTION;
    }
    image.bytes = Image::HEAD + program->source.size();
    program->code = image.head() + program->source;
    return SUCCESS;
}

API Result nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (!program || program->code.empty()) return INVALID_PROGRAM;
    *bytes = program->code.size();
    return SUCCESS;
}

API Result nvrtcGetCUBIN(Program* program, char* code) {
    if (!program || program->code.empty()) return INVALID_PROGRAM;
    memcpy(code, program->code.data(), program->code.size());
    return SUCCESS;
}

API Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = 1;
    return program ? SUCCESS : INVALID_PROGRAM;
}

API Result nvrtcGetProgramLog(Program* program, char* log) {
    *log = 0;
    return program ? SUCCESS : INVALID_PROGRAM;
}
