// Dequantises a matrix. A thread takes packs of 8 neighbouring weights.

template <class T>
struct Widen {
    const uint8_t *codes, *scales, *zero_points;  // scales: one per row and group
    T* to;                                        // rows one after the other
    int cols, packs;                              // weights of a row, packs in all
};

DEVICE float scale_of(const uint8_t* scales, int64_t i) { return widen(((const bf16*)scales)[i]); }

// Eight bytes as two words.
DEVICE void eight(uint32_t (&to)[2], const uint8_t* from) {
    const Pack<uint32_t, 2> pack = *(const Pack<uint32_t, 2>*)from;
    to[0] = pack.v[0];
    to[1] = pack.v[1];
}

DEVICE float as_float(uint32_t bits) {
#ifdef EMULATED
    float x;
    memcpy(&x, &bits, 4);
    return x;
#else
    return __uint_as_float(bits);
#endif
}

// Word whose bytes, from the lowest, are those of the two words that the digits of `order` name, from the lowest.
DEVICE uint32_t bytes_of(uint32_t low, uint32_t high, uint32_t order) {
#ifdef EMULATED
    const uint64_t both = low | (uint64_t)high << 32;
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) word |= (uint32_t)(both >> 8 * (order >> 4 * i & 7) & 255) << 8 * i;
    return word;
#else
    return __byte_perm(low, high, order);
#endif
}

// 2^23 plus byte k of a word, exact: the lowest bits of such a number are an integer.
constexpr float ABOVE = 0x1p23f;
DEVICE float above(uint32_t word, int k) { return as_float(bytes_of(word, 0x4b000000, 0x7650 + k)); }

// e4m3: sign, 4 exponent bits with bias 7, 3 mantissa bits; the two NaN codes do not occur. Moved to where an f32 has them,
// the bits are those of a number 2^120 times as small, as the biases are 120 apart; codes without a leading one become f32
// without a leading one, so that the product is exact for them as well.
DEVICE float float8(uint32_t word, int k) {
    const uint32_t top = bytes_of(word, 0, 0x0444 + (k << 12));
    return as_float((uint32_t)((int)top >> 4) & 0x87f00000) * 0x1p120f;
}

// What is kept as bf16 is rounded as it is stored.
DEVICE float rounded_for(const float*, float x) { return rounded(x); }
DEVICE float rounded_for(const bf16*, float x) { return x; }

// uintN: groups of 64 codes of N bits in shards of 4, 2 and 1 bits, lowest bits first; see `uint.rs`. Codes number
// 8 * piece and on of a group, a byte each.
template <int N>
DEVICE void unpack(uint32_t (&codes)[2], const uint8_t* group, int piece) {
    codes[0] = codes[1] = 0;
    int at = 0, filled = 0;
#pragma unroll
    for (int width = 4; width > 0; width /= 2) {
        if (!(N & width)) continue;
        uint32_t bytes[2];
        eight(bytes, group + at + piece % width * 8);
        const int shift = piece / width * width;
#pragma unroll
        for (int i = 0; i < 2; i++)
            codes[i] |= (bytes[i] >> shift & ((1u << width) - 1) * 0x01010101u) << filled;
        at += 8 * width;
        filled += width;
    }
}

// Packs of uintN that a thread takes, a block's width apart, so that neighbours write side by side.
constexpr int PACKS = 4;

template <int N, class T>
DEVICE void widen_uint(const Widen<T>& a) {
    const int first = blockIdx.x * (PACKS * blockDim.x) + threadIdx.x;
    // Blocks are of whole groups: a thread's packs have the same place in theirs.
    const int piece = threadIdx.x % 8;
#pragma unroll
    for (int j = 0; j < PACKS; j++) {
        const int i = first + j * blockDim.x;
        if (i >= a.packs) return;
        const int group = i / 8;
        uint32_t codes[2];
        unpack<N>(codes, a.codes + (int64_t)group * (8 * N), piece);
        const float scale = scale_of(a.scales, group), zero = ABOVE + a.zero_points[group];
        float w[8];
#pragma unroll
        for (int k = 0; k < 8; k++) w[k] = rounded_for(a.to, (above(codes[k / 4], k % 4) - zero) * scale);
        store<8>(a.to + (int64_t)i * 8, w);
    }
}

// One byte per weight and one scale per row, which a block takes. KIND 0: e4m3, rounded to bf16; 1: integers, exact; 2: as
// 0 with f32 scales.
template <int KIND, class T>
DEVICE void widen_bytes(const Widen<T>& a) {
    const int64_t row = blockIdx.x, before = row * a.cols;
    const float scale = KIND == 2 ? ((const float*)a.scales)[row] : scale_of(a.scales, row);
    const bool whole = a.cols % 8 == 0;
    for (int col = threadIdx.x * 8; col < a.cols; col += blockDim.x * 8) {
        const uint8_t* codes = a.codes + before + col;
        T* to = a.to + before + col;
        uint32_t words[2];
        if (whole) {
            eight(words, codes);
        } else {
            uint64_t some = 0;
#pragma unroll 1
            for (int k = 0; k < 8 && col + k < a.cols; k++) some |= (uint64_t)codes[k] << 8 * k;
            words[0] = (uint32_t)some;
            words[1] = (uint32_t)(some >> 32);
        }
        float w[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const uint32_t word = words[k / 4];
            // Integers from -128 on become such from 0 on with their highest bit turned.
            w[k] = KIND == 1 ? (above(word ^ 0x80808080, k % 4) - (ABOVE + 128)) * scale
                             : rounded_for(a.to, float8(word, k % 4) * scale);
        }
        if (whole)
            store<8>(to, w);
        else
            for (int k = 0; k < 8 && col + k < a.cols; k++) narrow(to[k], w[k]);
    }
}

#define UINT(T, S, N) \
    KERNEL void widen_uint##N##_##S(Widen<T> a) { widen_uint<N>(a); }
#define KERNELS(T, S)                                                        \
    UINT(T, S, 2) UINT(T, S, 3) UINT(T, S, 4) UINT(T, S, 5) UINT(T, S, 6) UINT(T, S, 7) \
    KERNEL void widen_float8_##S(Widen<T> a) { widen_bytes<0>(a); }          \
    KERNEL void widen_int8_##S(Widen<T> a) { widen_bytes<1>(a); }            \
    KERNEL void widen_fp8_##S(Widen<T> a) { widen_bytes<2>(a); }
FOR_FLOATS(KERNELS)

