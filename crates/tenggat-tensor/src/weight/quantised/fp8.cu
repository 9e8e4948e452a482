
// Operands of 8-bit products: rows in e4m3 with an f32 scale each, and the transpose of such codes.

// The nearest code, ties to even; what is larger than 448 becomes 448.
DEVICE uint8_t e4m3(float x) {
    union {
        float value;
        uint32_t bits;
    } u = {x};
    const uint32_t sign = u.bits >> 24 & 0x80, size = u.bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7f;         // NaN
    if (size >= 0x43e00000) return sign | 0x7e;  // 448
    // Below the smallest normal, 2^-6, multiples of 2^-9; eight of them carry into its code, which is 8.
    if (size < 0x3c800000) return sign | (uint8_t)rintf(fabsf(x) * 512);
    return sign | (((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3));
}

DEVICE uint16_t e4m3(float low, float high) {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return e4m3(low) | e4m3(high) << 8;
#endif
}

template <class T>
struct QuantiseRows {
    Mat<T> x;
    const float* factors;  // one per column, or null
    uint8_t* codes;
    float* scales;
};

// The largest of numbers that are not negative, in all threads of a block; once per kernel.
DEVICE float block_max(float x) {
    __shared__ float parts[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    x = warp_max(x);
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < blockDim.x / 32 ? parts[lane] : 0.0f);
}

template <int V, class T>
DEVICE void load_scaled(float (&v)[V], const QuantiseRows<T>& a, int64_t row, int col) {
    load<V>(v, a.x.row(row) + col);
    if (!a.factors) return;
#pragma unroll
    for (int k = 0; k < V; k += 4) {
        float f[4];
        load<4>(f, a.factors + col + k);
#pragma unroll
        for (int j = 0; j < 4; j++) v[k + j] *= f[j];
    }
}

// A block takes a row and reads it twice, the second time from cache. NaN and infinities become NaN.
template <class T>
DEVICE void quantise_rows(const QuantiseRows<T>& a) {
    constexpr int V = Wide<T>::V;
    const int64_t row = blockIdx.x;
    const int c = a.x.cols, step = blockDim.x * V, first = threadIdx.x * V;
    float v[V], largest = 0.0f;
    for (int i = first; i < c; i += step) {
        load_scaled<V>(v, a, row, i);
#pragma unroll
        for (int k = 0; k < V; k++) largest = fmaxf(largest, fabsf(v[k]));
    }
    largest = block_max(largest);
    // A row of zeros has scale 1; the inverse of any other stays finite.
    const float range = largest == 0.0f ? 448.0f : fmaxf(largest, 0x1p-100f);
    const float inverse = 448.0f / range;
    if (threadIdx.x == 0) a.scales[row] = range / 448.0f;
    for (int i = first; i < c; i += step) {
        load_scaled<V>(v, a, row, i);
        Pack<uint16_t, V / 2> codes;
#pragma unroll
        for (int k = 0; k < V / 2; k++)
            codes.v[k] = e4m3(v[2 * k] * inverse, v[2 * k + 1] * inverse);
        *(Pack<uint16_t, V / 2>*)(a.codes + row * c + i) = codes;
    }
}

#define FP8_KERNELS(T, S) \
    KERNEL void quantise_rows_##S(QuantiseRows<T> a) { quantise_rows(a); }
FOR_FLOATS(FP8_KERNELS)

template <class T>
struct ScaleSums {
    Mat<T> sums, to;
    const float *rows, *cols;  // a scale for each
    const T* bias;             // of each column, or null
    float beta;                // factor of what was there
};

// `to = rows ∘ sums ∘ cols + bias + beta · to`, 16 bytes at a time.
template <class T>
DEVICE void scale_sums(const ScaleSums<T>& a) {
    constexpr int V = Wide<T>::V;
    int64_t row, col;
    if (!element<V>(row, col, a.to)) return;
    float sums[V], old[V];
    load<V>(sums, a.sums.row(row) + col);
    if (a.beta != 0.0f) load<V>(old, a.to.row(row) + col);
    const float scale = a.rows[row];
#pragma unroll
    for (int k = 0; k < V; k++) {
        sums[k] *= scale * a.cols[col + k];
        if (a.bias) sums[k] += widen(a.bias[col + k]);
        if (a.beta != 0.0f) sums[k] += a.beta * old[k];
    }
    store<V>(a.to.row(row) + col, sums);
}

#define SCALE_SUMS(T, S) \
    KERNEL void scale_sums_##S(ScaleSums<T> a) { scale_sums(a); }
FOR_FLOATS(SCALE_SUMS)

struct TransposeBytes {
    const uint8_t* from;
    uint8_t* to;
    int rows, cols;  // of `from`, multiples of 16
};

// A block of 256 threads takes 64 x 64 bytes, a thread 16 in a row of either matrix.
KERNEL void transpose_bytes(TransposeBytes a) {
    __shared__ uint8_t tile[64][68];
    const int across = (a.cols + 63) / 64;
    const int top = blockIdx.x / across * 64, left = blockIdx.x % across * 64;
    const int i = threadIdx.x / 4, j = threadIdx.x % 4 * 16;
    if (top + i < a.rows && left + j < a.cols) {
        const Pack<uint8_t, 16> pack = *(const Pack<uint8_t, 16>*)(a.from + (int64_t)(top + i) * a.cols + left + j);
#pragma unroll
        for (int k = 0; k < 16; k++) tile[i][j + k] = pack.v[k];
    }
    __syncthreads();
    if (left + i < a.cols && top + j < a.rows) {
        Pack<uint8_t, 16> pack;
#pragma unroll
        for (int k = 0; k < 16; k++) pack.v[k] = tile[j + k][i];
        *(Pack<uint8_t, 16>*)(a.to + (int64_t)(left + i) * a.rows + top + j) = pack;
    }
}
