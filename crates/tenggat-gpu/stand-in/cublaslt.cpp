// cuBLASLt's matrix products, for compute capability 9.0, as plain loops that are queued on the driver's stand-in.
//
// Names and numbers are those of cublasLt.h. A product is what its descriptions say at the time of the call:
//   D = epilogue(alpha · a_i · b_j · op(A) · op(B) + beta · C), matrices column by column, sums in 32 bits,
// where a and b are scales of operands of 8-bit floats, one per row and column of D. What is not modelled is refused
// as not supported.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "faults.hpp"

#define API extern "C" __attribute__((visibility("default")))

extern "C" int standInIsCapturing();
extern "C" int standInEnqueue(void* stream, void (*run)(void*), void* data, void (*drop)(void*));

enum Status : int { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type : int { F32 = 0, BF16 = 14, E4M3 = 28 };
constexpr int COMPUTE_32F = 68;

// Attributes of a product's description, and their sizes.
enum Attribute : int {
    COMPUTE_TYPE = 0,
    SCALE_TYPE = 1,
    POINTER_MODE = 2,
    TRANSA = 3,
    TRANSB = 4,
    TRANSC = 5,
    EPILOGUE = 7,
    BIAS_POINTER = 8,
    AUX_POINTER = 11,
    AUX_LD = 12,
    A_SCALE_POINTER = 17,
    B_SCALE_POINTER = 18,
    AUX_DATA_TYPE = 22,
    FAST_ACCUM = 25,
    BIAS_DATA_TYPE = 26,
    A_SCALE_MODE = 31,
    B_SCALE_MODE = 32,
};
static size_t size_of(int attribute) {
    switch (attribute) {
        case BIAS_POINTER:
        case AUX_POINTER:
        case AUX_LD:
        case A_SCALE_POINTER:
        case B_SCALE_POINTER: return 8;
        case FAST_ACCUM: return 1;
        case COMPUTE_TYPE:
        case SCALE_TYPE:
        case POINTER_MODE:
        case TRANSA:
        case TRANSB:
        case TRANSC:
        case EPILOGUE:
        case AUX_DATA_TYPE:
        case BIAS_DATA_TYPE:
        case A_SCALE_MODE:
        case B_SCALE_MODE: return 4;
        default: return 0;
    }
}
constexpr int OUTER_VEC_32F = 3;
enum Epilogue : int {
    DEFAULT = 1,
    BIAS = 4,
    GELU = 32,
    GELU_BIAS = GELU | BIAS,
    GELU_AUX = GELU | 128,
    GELU_AUX_BIAS = GELU_AUX | BIAS,
    DGELU = 192,
};

struct Description {
    std::map<int, uint64_t> attributes;
    uint64_t get(int attribute, uint64_t otherwise = 0) const {
        const auto found = attributes.find(attribute);
        return found == attributes.end() ? otherwise : found->second;
    }
};

struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;  // matrices of a batch, and elements from one to the next
    int64_t step = 0;
    bool operator==(const Layout& o) const {
        return type == o.type && rows == o.rows && cols == o.cols && ld == o.ld && batch == o.batch && step == o.step;
    }
    // Whether memory runs along 16 bytes at a time everywhere, in elements of a byte.
    bool is_in_sixteens() const { return rows % 16 == 0 && ld % 16 == 0; }
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t alignments[4] = {256, 256, 256, 256};
};

// What the heuristic's opaque answer holds: which way, and for what it was asked.
struct Algorithm {
    uint64_t magic, way, workspace, problem, unused[2];
    uint32_t alignments[4];
};
constexpr uint64_t MAGIC = 0x7374616e642d696e;
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");

struct Choice {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

struct Product {
    Layout a, b, c, d;
    bool a_transposed, b_transposed, has_outer_scales;
    int epilogue, bias_type, aux_type;
    const float *a_scales, *b_scales;
    const void *a_data, *b_data, *c_data, *bias;
    void *d_data, *aux;
    int64_t aux_ld;
    uint64_t inner;
    float alpha, beta;
    float* workspace;  // for sums, or none
};

static size_t bytes_of(int type) { return type == F32 ? 4 : type == BF16 ? 2 : 1; }

static float read(int type, const void* data, uint64_t at) {
    if (type == F32) return ((const float*)data)[at];
    if (type == BF16) {
        const uint32_t bits = (uint32_t)((const uint16_t*)data)[at] << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    const uint8_t code = ((const uint8_t*)data)[at];
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const float size = (code & 127) == 127 ? NAN
                       : exponent          ? std::ldexp(8.0f + fraction, exponent - 10)
                                           : std::ldexp((float)fraction, -9);
    return code & 128 ? -size : size;
}

static void write(int type, void* data, uint64_t at, float value) {
    if (type == F32) {
        ((float*)data)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t*)data)[at] = std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// op(matrix), `rows` of it, column by column without gaps.
static std::vector<float> dense(const Layout& layout, const void* data, bool transposed) {
    const uint64_t rows = transposed ? layout.cols : layout.rows;
    std::vector<float> to(layout.rows * layout.cols);
    for (uint64_t j = 0; j < layout.cols; j++)
        for (uint64_t i = 0; i < layout.rows; i++)
            to[transposed ? j + i * rows : i + j * rows] = read(layout.type, data, i + j * layout.ld);
    return to;
}

static void sum(const Product& p, float* sums) {
    const uint64_t m = p.d.rows, n = p.d.cols, k = p.inner;
    const auto a = dense(p.a, p.a_data, p.a_transposed), b = dense(p.b, p.b_data, p.b_transposed);
    for (uint64_t j = 0; j < n; j++) {
        float* to = sums + j * m;
        std::fill(to, to + m, 0.0f);
        for (uint64_t l = 0; l < k; l++) {
            const float factor = b[l + j * k];
            const float* from = &a[l * m];
            for (uint64_t i = 0; i < m; i++) to[i] += from[i] * factor;
        }
    }
}

// The approximation by tanh, and its derivative.
static float inner_tanh(float x) { return std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)); }
static float gelu(float x) { return 0.5f * x * (1 + inner_tanh(x)); }
static float gelu_slope(float x) {
    const float t = inner_tanh(x);
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

static void finish(const Product& p, const float* sums) {
    for (uint64_t j = 0; j < p.d.cols; j++)
        for (uint64_t i = 0; i < p.d.rows; i++) {
            float value = p.alpha * sums[i + j * p.d.rows];
            if (p.a_scales) value *= p.a_scales[p.has_outer_scales ? i : 0];
            if (p.b_scales) value *= p.b_scales[p.has_outer_scales ? j : 0];
            // What C held counts for nothing, not even as NaN, if beta is 0.
            if (p.beta != 0) value += p.beta * read(p.c.type, p.c_data, i + j * p.c.ld);
            if (p.bias) value += read(p.bias_type, p.bias, i);
            const uint64_t at = i + j * p.aux_ld;
            if (p.epilogue == DGELU) value *= gelu_slope(read(p.aux_type, p.aux, at));
            else if (p.aux) write(p.aux_type, p.aux, at, value);
            if (p.epilogue & GELU) value = gelu(value);
            write(p.d.type, p.d_data, i + j * p.d.ld, value);
        }
}

// Reads descriptions. What is wrong in itself is an invalid value; what there is no kernel for is not supported.
static Status describe(
    const Description* description, const Layout* a, const Layout* b, const Layout* c, const Layout* d, Product& p) {
    if (!description || !a || !b || !c || !d) return INVALID_VALUE;
    const Description& has = *description;
    p.a = *a, p.b = *b, p.c = *c, p.d = *d;
    p.a_transposed = has.get(TRANSA), p.b_transposed = has.get(TRANSB);
    for (const Layout* layout : {a, b, c, d})
        if (!layout->rows || !layout->cols || layout->ld < (int64_t)layout->rows) return INVALID_VALUE;
    const uint64_t m = p.a_transposed ? a->cols : a->rows, n = p.b_transposed ? b->rows : b->cols;
    p.inner = p.a_transposed ? a->rows : a->cols;
    if (p.inner != (p.b_transposed ? b->cols : b->rows)) return INVALID_VALUE;
    if (c->rows != m || d->rows != m || c->cols != n || d->cols != n) return INVALID_VALUE;
    if (a->batch != b->batch || a->batch != c->batch || a->batch != d->batch) return INVALID_VALUE;

    if (has.get(COMPUTE_TYPE) != COMPUTE_32F || has.get(SCALE_TYPE) != F32) return NOT_SUPPORTED;
    if (has.get(POINTER_MODE) || has.get(TRANSC) || has.get(TRANSA) > 1 || has.get(TRANSB) > 1) return NOT_SUPPORTED;
    const bool is_fp8 = a->type == E4M3;
    if (a->type != b->type || c->type != d->type || d->type == E4M3) return NOT_SUPPORTED;
    if (a->type == F32 && d->type != F32) return NOT_SUPPORTED;

    p.a_scales = (const float*)has.get(A_SCALE_POINTER), p.b_scales = (const float*)has.get(B_SCALE_POINTER);
    const uint64_t mode = has.get(A_SCALE_MODE);
    p.has_outer_scales = mode == OUTER_VEC_32F;
    if (mode != has.get(B_SCALE_MODE) || (mode && !p.has_outer_scales)) return NOT_SUPPORTED;
    if (!is_fp8 && (p.a_scales || p.b_scales || mode)) return NOT_SUPPORTED;
    if (p.has_outer_scales && (!p.a_scales || !p.b_scales)) return INVALID_VALUE;
    if (is_fp8) {
        if (!p.a_transposed || p.b_transposed) return NOT_SUPPORTED;
        if (!a->is_in_sixteens() || !b->is_in_sixteens() || !c->is_in_sixteens() || !d->is_in_sixteens())
            return NOT_SUPPORTED;
    }

    p.epilogue = has.get(EPILOGUE, DEFAULT);
    p.bias = (p.epilogue & BIAS) ? (const void*)has.get(BIAS_POINTER) : nullptr;
    // The bias of 8-bit operands is never 32-bit.
    const int bias_type = is_fp8 ? BF16 : d->type;
    p.bias_type = has.get(BIAS_DATA_TYPE, bias_type);
    p.aux = (void*)has.get(AUX_POINTER);
    p.aux_ld = has.get(AUX_LD);
    p.aux_type = has.get(AUX_DATA_TYPE, d->type);
    bool has_aux = false;
    switch (p.epilogue) {
        case DEFAULT:
        case BIAS:
        case GELU:
        case GELU_BIAS: break;
        case GELU_AUX:
        case GELU_AUX_BIAS:
        case DGELU: has_aux = true; break;
        default: return NOT_SUPPORTED;
    }
    if ((p.epilogue & BIAS) && p.bias_type != bias_type) return NOT_SUPPORTED;
    if (has_aux && p.aux_type != d->type) return NOT_SUPPORTED;
    if (has_aux && (p.aux_ld < (int64_t)m || p.aux_ld % 8 || (uintptr_t)p.aux % 16)) return INVALID_VALUE;
    if (!has_aux) p.aux = nullptr;
    return SUCCESS;
}

// A number that problems share for which the same algorithms hold.
static uint64_t key(const Product& p) {
    uint64_t hash = 14695981039346656037u;
    const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
    for (const Layout& layout : {p.a, p.b, p.c, p.d})
        mix(layout.type), mix(layout.rows), mix(layout.cols), mix(layout.ld), mix(layout.batch), mix(layout.step);
    mix(p.a_transposed), mix(p.b_transposed), mix(p.epilogue), mix(p.has_outer_scales);
    return hash;
}

API size_t cublasLtGetVersion() { return 130100; }

API Status cublasLtCreate(void** handle) {
    static char the_handle;
    *handle = &the_handle;
    return SUCCESS;
}

API Status cublasLtDestroy(void* handle) { return handle ? SUCCESS : INVALID_VALUE; }

API Status cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    *description = new Description{{{COMPUTE_TYPE, compute}, {SCALE_TYPE, scale}}};
    return SUCCESS;
}

API Status cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return SUCCESS;
}

API Status cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t bytes) {
    if (!description || !value || !bytes || bytes != size_of(attribute)) return INVALID_VALUE;
    uint64_t bits = 0;
    memcpy(&bits, value, bytes);
    description->attributes[attribute] = bits;
    return SUCCESS;
}

API Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (type != F32 && type != BF16 && type != E4M3) return NOT_SUPPORTED;
    *layout = new Layout{type, rows, cols, ld};
    return SUCCESS;
}

API Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    constexpr int BATCH_COUNT = 5, STRIDED_BATCH_OFFSET = 6;
    if (!layout || !value) return INVALID_VALUE;
    if (attribute == BATCH_COUNT && bytes == 4)
        memcpy(&layout->batch, value, bytes);
    else if (attribute == STRIDED_BATCH_OFFSET && bytes == 8)
        memcpy(&layout->step, value, bytes);
    else
        return INVALID_VALUE;
    return layout->batch < 1 ? INVALID_VALUE : SUCCESS;
}

API Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}

API Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}

API Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}

API Status cublasLtMatmulPreferenceSetAttribute(
    Preference* preference, int attribute, const void* value, size_t bytes) {
    constexpr int WORKSPACE = 1, REDUCTION_SCHEMES = 3, ALIGNMENT_A = 5, ALIGNMENT_D = 8;
    if (!preference || !value) return INVALID_VALUE;
    if (attribute == WORKSPACE && bytes == 8)
        memcpy(&preference->workspace, value, bytes);
    else if (attribute == REDUCTION_SCHEMES && bytes == 4 && *(const uint32_t*)value <= 7)
        return SUCCESS;  // sums are f32 here in any case
    else if (attribute >= ALIGNMENT_A && attribute <= ALIGNMENT_D && bytes == 4)
        memcpy(&preference->alignments[attribute - ALIGNMENT_A], value, bytes);
    else
        return INVALID_VALUE;
    return SUCCESS;
}

API Status cublasLtMatmulAlgoGetHeuristic(
    void* handle, const Description* description, const Layout* a, const Layout* b, const Layout* c, const Layout* d,
    const Preference* preference, int requested, Choice* choices, int* found) {
    if (!handle || !preference || requested < 1 || !choices || !found) return INVALID_VALUE;
    *found = 0;
    Product p{};
    if (const Status error = describe(description, a, b, c, d, p)) return error;
    static std::atomic<unsigned> questions;
    if (fault("products") || fault("product", questions)) return NOT_SUPPORTED;
    if (fault("scales") && p.has_outer_scales) return NOT_SUPPORTED;
    if (fault("captured-questions") && standInIsCapturing()) return EXECUTION_FAILED;
    const uint32_t* alignments = preference->alignments;
    const Layout* layouts[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (alignments[i] < (a->type == E4M3 ? 16 : bytes_of(layouts[i]->type))) return NOT_SUPPORTED;
    // What this stand-in models of batches has neither bias nor scales.
    if (d->batch > 1 && (p.epilogue != DEFAULT || p.a_scales)) return NOT_SUPPORTED;
    // The first leaves sums in the workspace, if they fit.
    const uint64_t sums = 4 * d->rows * d->cols;
    for (uint64_t way = sums <= preference->workspace ? 0 : 1; way < 3 && *found < requested; way++) {
        const uint64_t workspace = way == 0 ? sums : 0;
        Algorithm algorithm{MAGIC, way, workspace, key(p), {}, {}};
        memcpy(algorithm.alignments, alignments, sizeof algorithm.alignments);
        choices[(*found)++] = {algorithm, workspace, SUCCESS, 1.0f, {}};
    }
    return SUCCESS;
}

template <class F>
static Status enqueue(void* stream, F work) {
    const auto run = [](void* data) { (*(F*)data)(); };
    const auto drop = [](void* data) { delete (F*)data; };
    return standInEnqueue(stream, run, new F(std::move(work)), drop) ? EXECUTION_FAILED : SUCCESS;
}

static Status enqueue_product(void* stream, const Product& p) {
    if (!p.workspace)
        return enqueue(stream, [p] {
            std::vector<float> sums(p.d.rows * p.d.cols);
            sum(p, sums.data());
            finish(p, sums.data());
        });
    // In two steps: others that use the workspace meanwhile show.
    if (const Status error = enqueue(stream, [p] { sum(p, p.workspace); })) return error;
    return enqueue(stream, [p] { finish(p, p.workspace); });
}

API Status cublasLtMatmul(
    void* handle, const Description* description, const float* alpha, const void* a_data, const Layout* a,
    const void* b_data, const Layout* b, const float* beta, const void* c_data, const Layout* c, void* d_data,
    const Layout* d, const Algorithm* chosen, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle || !alpha || !beta || !a_data || !b_data || !d_data) return INVALID_VALUE;
    Product p{};
    if (const Status error = describe(description, a, b, c, d, p)) return error;
    p.alpha = *alpha, p.beta = *beta;
    p.a_data = a_data, p.b_data = b_data, p.c_data = c_data, p.d_data = d_data;
    if (p.beta != 0 && !c_data) return INVALID_VALUE;
    // In place, both have to lie alike.
    if (c_data == d_data && !(*c == *d)) return INVALID_VALUE;
    if ((p.epilogue & BIAS) && !p.bias) return INVALID_VALUE;

    Algorithm algorithm{MAGIC, 1, 0, key(p), {}, {}};
    for (uint32_t& alignment : algorithm.alignments) alignment = a->type == E4M3 ? 16 : 1;
    if (chosen) algorithm = *chosen;
    if (algorithm.magic != MAGIC || algorithm.problem != key(p)) return INVALID_VALUE;
    if (algorithm.workspace > workspace_bytes || (uintptr_t)workspace % 256) return INVALID_VALUE;
    if (fault("first-ways") && algorithm.way == 0) return NOT_SUPPORTED;
    const void* data[4] = {a_data, b_data, c_data, d_data};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)data[i] % algorithm.alignments[i]) return INVALID_VALUE;

    p.workspace = algorithm.way == 0 ? (float*)workspace : nullptr;
    // One product of a batch after the other, in the same workspace.
    const auto moved = [](const void* data, const Layout& layout, int i) {
        return (char*)data + i * layout.step * (int64_t)bytes_of(layout.type);
    };
    for (int i = 0; i < d->batch; i++) {
        Product one = p;
        one.a_data = moved(a_data, *a, i), one.b_data = moved(b_data, *b, i);
        one.c_data = moved(c_data, *c, i), one.d_data = moved(d_data, *d, i);
        if (const Status error = enqueue_product(stream, one)) return error;
    }
    return SUCCESS;
}
