// Dequantises a matrix. A thread takes 8 neighbouring weights.

struct Codes {
    const uint8_t *codes, *scales, *zero_points;  // scales: bf16, one per row and group
    int64_t rows;
    int cols;
};

template <class T>
struct Widen {
    Codes from;
    Mat<T> to;
};

DEVICE float scale_of(const uint8_t* scales, int64_t i) { return widen(((const bf16*)scales)[i]); }

// Writes 8 weights of a row, fewer at its end.
template <class T>
DEVICE void put(const Mat<T>& to, int64_t row, int col, const float (&w)[8]) {
    T* at = to.row(row) + col;
    if (col + 8 <= to.cols && to.stride % 8 == 0) {
        constexpr int V = Wide<T>::V;
        float part[V];
#pragma unroll
        for (int i = 0; i < 8; i += V) {
#pragma unroll
            for (int k = 0; k < V; k++) part[k] = w[i + k];
            store<V>(at + i, part);
        }
        return;
    }
    for (int k = 0; k < 8 && col + k < to.cols; k++) narrow(at[k], w[k]);
}

DEVICE uint64_t eight(const uint8_t* from) { return *(const uint64_t*)from; }

// e4m3: sign, 4 exponent bits with bias 7, 3 mantissa bits; the two NaN codes do not occur. Moved to where an f32 has them,
// the bits are those of a number 2^120 times as small, as the biases are 120 apart; codes without a leading one become f32
// without a leading one, so that the product is exact for them as well.
DEVICE float float8(uint8_t code) {
    const uint32_t bits = (uint32_t)(code & 127) << 20 | (uint32_t)(code & 128) << 24;
#ifdef EMULATED
    float small;
    memcpy(&small, &bits, 4);
#else
    const float small = __uint_as_float(bits);
#endif
    return small * 0x1p120f;
}

// uintN: groups of 64 codes of N bits in shards of 4, 2 and 1 bits, lowest bits first; see `quantise/uint.rs`.
template <int N, class T>
DEVICE void widen_uint(const Widen<T>& a) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, per_row = a.from.cols / 64 * 8;
    const int64_t all = a.from.rows * per_row;
    if (i >= all) return;
    int64_t row, at_row;
    split(row, at_row, i, per_row, all);
    const int64_t group = i / 8;  // over the whole matrix
    const int first = i % 8 * 8;  // of the group's codes
    const uint8_t* packed = a.from.codes + group * (8 * N);
    uint8_t codes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int at = 0, shift = 0;
#pragma unroll
    for (int width = 4; width > 0; width /= 2) {
        if (!(N & width)) continue;
        const int length = 8 * width;
        const uint64_t bytes = eight(packed + at + first % length) >> (first / length * width);
#pragma unroll
        for (int k = 0; k < 8; k++) codes[k] |= (bytes >> (8 * k) & ((1 << width) - 1)) << shift;
        at += length;
        shift += width;
    }
    const float scale = scale_of(a.from.scales, group);
    const int zero = a.from.zero_points[group];
    float w[8];
#pragma unroll
    for (int k = 0; k < 8; k++) w[k] = rounded((float)((int)codes[k] - zero) * scale);
    put(a.to, row, (int)at_row * 8, w);
}

// One byte per weight and one scale per row. KIND 0: e4m3, rounded to bf16; 1: integers, exact; 2: as 0 with f32 scales.
template <int KIND, class T>
DEVICE void widen_bytes(const Widen<T>& a) {
    const int64_t per_row = (a.from.cols + 7) / 8, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t all = a.from.rows * per_row;
    if (i >= all) return;
    int64_t row, at_row;
    split(row, at_row, i, per_row, all);
    const int col = (int)at_row * 8;
    const float scale = KIND == 2 ? ((const float*)a.from.scales)[row] : scale_of(a.from.scales, row);
    const uint8_t* codes = a.from.codes + row * a.from.cols + col;
    // Rows of whole packs are read 8 bytes at a time.
    uint64_t pack = 0;
    if (a.from.cols % 8 == 0)
        pack = eight(codes);
    else
        for (int k = 0; k < 8 && col + k < a.from.cols; k++) pack |= (uint64_t)codes[k] << (8 * k);
    float w[8];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const uint8_t code = (uint8_t)(pack >> (8 * k));
        w[k] = KIND == 1 ? (float)(signed char)code * scale : rounded(float8(code) * scale);
    }
    put(a.to, row, col, w);
}

#define UINT(T, S, N) \
    KERNEL void widen_uint##N##_##S(Widen<T> a) { widen_uint<N>(a); }
#define KERNELS(T, S)                                                        \
    UINT(T, S, 2) UINT(T, S, 3) UINT(T, S, 4) UINT(T, S, 5) UINT(T, S, 6) UINT(T, S, 7) \
    KERNEL void widen_float8_##S(Widen<T> a) { widen_bytes<0>(a); }          \
    KERNEL void widen_int8_##S(Widen<T> a) { widen_bytes<1>(a); }            \
    KERNEL void widen_fp8_##S(Widen<T> a) { widen_bytes<2>(a); }
FOR_FLOATS(KERNELS)
