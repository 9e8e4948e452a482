// Kernels: an image is source text, compiled as C++ for the processor when a function of it is asked for.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <regex>
#include <set>

#include "faults.hpp"
#include "image.hpp"
#include "state.hpp"

struct Module {
    ~Module() { driver.used -= source.size(); }
    std::string source;
    // Of the compiled library; it stays loaded, for work that was asked for.
    void* library = nullptr;
};

// Runs a kernel on a copy of its argument.
using Launch = void (*)(const void* argument, const unsigned* grid, unsigned threads, unsigned shared);

struct Function {
    std::shared_ptr<Module> module;
    Launch launch;
    size_t bytes;  // of the argument
    unsigned most_shared = SHARED;
};

// What is compiled behind the kernels: each with the size of its argument, and as a function that takes its address.
static const char* const BEHIND = R"(
namespace stand_in {
template <class A> struct Call { void (*kernel)(A); const A* argument; };
template <class A> void launch(
    void (*kernel)(A), const void* argument, const unsigned* grid, unsigned threads, unsigned shared) {
    memset(emulated::dynamic_shared, 0xff, shared);
    Call<A> call{kernel, (const A*)argument};
    emulate([](void* p) { auto& call = *(Call<A>*)p; call.kernel(*call.argument); }, &call, grid, threads);
}
template <class A> constexpr size_t bytes(void (*)(A)) { return sizeof(A); }
}
#define STAND_IN(kernel) \
    extern "C" const size_t stand_in_bytes_##kernel = stand_in::bytes(kernel); \
    extern "C" void stand_in_launch_##kernel( \
        const void* argument, const unsigned* grid, unsigned threads, unsigned shared) { \
        stand_in::launch(kernel, argument, grid, threads, shared); \
    }
)";

// Folder of this library, in which kernels are kept.
static std::string folder() {
    Dl_info info;
    dladdr((void*)&folder, &info);
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

static std::string output_of(const std::string& command) {
    std::string text;
    FILE* pipe = popen(command.c_str(), "r");
    if (!pipe) return text;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) text.append(part, n);
    return pclose(pipe) ? "" : text;
}

static std::string quoted(const std::string& text) { return "'" + text + "'"; }

// Compiles a source to a library; whether that went well. The compiler says what is wrong.
static bool compile(const std::string& source, const std::string& to) {
    const char* set = std::getenv("CXX");
    const std::string compiler = quoted(set ? set : "c++") + " -std=c++17 -w ";
    const std::string beside = to + "." + std::to_string(getpid()), file = beside + ".cpp";
    const auto write = [&](const std::string& behind) {
        std::ofstream out(file);
        out << "#include \"emulate.hpp\"\n#ifdef LIST\n#undef __global__\n#define __global__ STAND_IN_KERNEL\n#endif\n"
            << source << behind;
        return out.good();
    };
    const std::string including = "-I " + quoted(folder()) + " " + quoted(file);
    if (!write("")) return false;
    // Kernels are what the preprocessor leaves of `__global__`.
    const std::string listed = output_of(compiler + "-E -P -DLIST " + including);
    static const std::regex kernel("STAND_IN_KERNEL\\s+void\\s+(\\w+)");
    std::string behind = BEHIND;
    for (std::sregex_iterator found(listed.begin(), listed.end(), kernel), end; found != end; ++found)
        behind += "STAND_IN(" + found->str(1) + ")\n";
    if (listed.empty() || !write(behind)) return false;
    const std::string flags = "-O2 -fPIC -shared -fno-strict-aliasing -o " + quoted(beside) + " ";
    const bool is_compiled = std::system((compiler + flags + including).c_str()) == 0;
    std::remove(file.c_str());
    return is_compiled && std::rename(beside.c_str(), to.c_str()) == 0;
}

static bool load(Module& module) {
    if (module.library) return true;
    char name[32];
    snprintf(name, sizeof name, "/kernels/%016zx.so", std::hash<std::string>()(module.source));
    const std::string path = folder() + name;
    if (access(path.c_str(), R_OK) && !compile(module.source, path)) return false;
    module.library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    return module.library;
}

API Result cuModuleLoadData(void** handle, const void* image) {
    Entry entry;
    if (entry.failure) return entry.failure;
    if (!handle || !image) return INVALID_VALUE;
    Image head;
    if (!head.read((const char*)image)) return INVALID_IMAGE;
    // Code of one major version runs on the same minor version and later ones.
    if (head.architecture != "sm_90" && head.architecture != "sm_90a") return NO_BINARY_FOR_GPU;
    auto module = std::make_shared<Module>();
    module->source.assign((const char*)image + Image::HEAD, head.bytes - Image::HEAD);
    // Code takes memory of the device, until the module goes and no work needs it.
    driver.used += module->source.size();
    *handle = driver.modules.add(std::move(module));
    return SUCCESS;
}

API Result cuModuleUnload(void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto module = driver.modules.find(handle);
    if (!module) return INVALID_HANDLE;
    auto& functions = driver.functions.all;
    for (auto at = functions.begin(); at != functions.end();)
        at = at->second->module == module ? functions.erase(at) : std::next(at);
    driver.modules.remove(handle);
    return SUCCESS;
}

API Result cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto module = driver.modules.find(module_handle);
    if (!module) return INVALID_HANDLE;
    if (!load(*module)) return INVALID_IMAGE;
    const auto find = [&](const char* what) { return dlsym(module->library, (what + std::string(name)).c_str()); };
    const auto launch = (Launch)find("stand_in_launch_");
    const auto bytes = (const size_t*)find("stand_in_bytes_");
    if (!launch || !bytes) return NOT_FOUND;
    *handle = driver.functions.add(std::make_shared<Function>(Function{module, launch, *bytes}));
    return SUCCESS;
}

constexpr int MAX_THREADS = 0, MAX_DYNAMIC_SHARED = 8;

API Result cuFuncSetAttribute(void* handle, int attribute, int value) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto function = driver.functions.find(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute != MAX_DYNAMIC_SHARED || value < 0 || value > (int)MOST_SHARED) return INVALID_VALUE;
    function->most_shared = value;
    return SUCCESS;
}

API Result cuFuncGetAttribute(int* value, int attribute, void* handle) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto function = driver.functions.find(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute != MAX_THREADS && attribute != MAX_DYNAMIC_SHARED) return NOT_SUPPORTED;
    *value = attribute == MAX_THREADS ? 1024 : function->most_shared;
    return SUCCESS;
}

API Result cuLaunchKernel(
    void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared, void* stream_handle, void** arguments, void** extra) {
    Entry entry;
    if (entry.failure) return entry.failure;
    const auto function = driver.functions.find(handle);
    const auto stream = stream_of(stream_handle);
    if (!function || !stream) return INVALID_HANDLE;
    if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z) return INVALID_VALUE;
    if (grid_x > INT32_MAX || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (uint64_t(block_x) * block_y * block_z > 1024 || shared > function->most_shared) return INVALID_VALUE;
    if (!arguments || !arguments[0]) return INVALID_VALUE;
    static std::atomic<unsigned> launches;
    if (fault("launch", launches)) return LAUNCH_FAILED;
    if (extra || block_y > 1 || block_z > 1) return NOT_SUPPORTED;
    const auto* from = (const char*)arguments[0];
    // Vectors of bytes lie where operator new puts them, at multiples of 16.
    return enqueue(*stream, [=, argument = std::vector<char>(from, from + function->bytes)] {
        const unsigned grid[3] = {grid_x, grid_y, grid_z};
        function->launch(argument.data(), grid, block_x, shared);
    });
}
