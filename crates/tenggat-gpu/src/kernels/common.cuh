// What every kernel starts with: types, matrices, vector access, reductions. Compiles under NVRTC and, with
// emulate.hpp before it, as C++ for a processor. Nothing from CUDA's headers is needed.

#ifndef EMULATED
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#endif

#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__

// bfloat16: the upper half of an f32.
struct bf16 {
    uint16_t bits;
};

// A matrix of rows, `stride` elements apart. Mirrors `Mat` of `kernel.rs`.
template <class T>
struct Mat {
    T* data;
    int64_t rows, cols, stride;
    DEVICE T* row(int64_t i) const { return data + i * stride; }
};

// Kernels that take any element type get one name per type.
#define FOR_FLOATS(define) define(float, f32) define(bf16, bf16)

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
#ifdef EMULATED
    float y;
    memcpy(&y, &bits, 4);
    return y;
#else
    return __uint_as_float(bits);
#endif
}

DEVICE void narrow(float& to, float x) { to = x; }
DEVICE void narrow(bf16& to, float x) {
#ifdef EMULATED
    uint32_t bits;
    memcpy(&bits, &x, 4);
    to.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#endif
}

// Rounds to the nearest bf16.
DEVICE float rounded(float x) {
    bf16 y;
    narrow(y, x);
    return widen(y);
}

// V neighbouring elements, read and written at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T v[V];
};

// Elements of 16 bytes.
template <class T>
struct Wide {
    static constexpr int V = 16 / sizeof(T);
};

template <int V, class T>
DEVICE void load(float (&to)[V], const T* from) {
    const Pack<T, V> pack = *(const Pack<T, V>*)from;
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = widen(pack.v[i]);
}

// Two bf16 numbers in one word, the first in its lower half.
DEVICE uint32_t narrow_pair(float low, float high) {
#ifdef EMULATED
    bf16 first, second;
    narrow(first, low);
    narrow(second, high);
    return first.bits | (uint32_t)second.bits << 16;
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// Writes 1, 2 or 4 words of global memory at once, more in fours. Left to itself the compiler often writes the members of a
// structure one by one.
template <int N>
DEVICE void put_words(void* to, const uint32_t (&w)[N]) {
#ifdef EMULATED
    memcpy(to, w, 4 * N);
#else
    if constexpr (N == 1) *(uint32_t*)to = w[0];
    if constexpr (N == 2) asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w[0]), "r"(w[1]) : "memory");
#pragma unroll
    for (int i = 0; i + 4 <= N; i += 4)
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"((uint32_t*)to + i), "r"(w[i]), "r"(w[i + 1]),
                     "r"(w[i + 2]), "r"(w[i + 3])
                     : "memory");
#endif
}

template <int V>
DEVICE void store(float* to, const float (&from)[V]) {
    uint32_t words[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
#ifdef EMULATED
        memcpy(&words[i], &from[i], 4);
#else
        words[i] = __float_as_uint(from[i]);
#endif
    }
    put_words(to, words);
}

template <int V>
DEVICE void store(bf16* to, const float (&from)[V]) {
    if constexpr (V == 1) {
        narrow(*to, from[0]);
    } else {
        uint32_t words[V / 2];
#pragma unroll
        for (int i = 0; i < V / 2; i++) words[i] = narrow_pair(from[2 * i], from[2 * i + 1]);
        put_words(to, words);
    }
}

// 1 / (1 + e^-x) by the units for special functions, within a few units in the last place. The denominator is at least 1,
// so that their flushing of tiny numbers changes nothing but results below 2^-126.
DEVICE float sigmoid(float x) {
#ifdef EMULATED
    return 1.0f / (1.0f + expf(-x));
#else
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
    return result;
#endif
}

// The sample of a row, if each has so many. Matrices that are taken by rows have fewer than 2^31.
DEVICE int64_t sample_of(int64_t row, int rows_per_sample) { return (uint32_t)row / (uint32_t)rows_per_sample; }

// Row and place within it of piece number i, if there are `per_row` pieces in a row and `all` in all.
DEVICE void split(int64_t& row, int64_t& at, int64_t i, int64_t per_row, int64_t all) {
    // A division of 64 bits takes some hundred instructions, one of 32 about twenty.
    row = all >> 32 ? i / per_row : (int64_t)((uint32_t)i / (uint32_t)per_row);
    at = i - row * per_row;
}

// Where this thread works if each takes V neighbouring elements of a matrix; false if it has nothing to do.
template <int V, class T>
DEVICE bool element(int64_t& row, int64_t& col, const Mat<T>& of) {
    const int64_t per_row = of.cols / V;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t all = of.rows * per_row;
    if (i >= all) return false;
    split(row, col, i, per_row, all);
    col *= V;
    return true;
}

// Sum over the 32 threads of a warp, in all of them.
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

DEVICE float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// Sums of N numbers over a block of at most 1024 threads, whole warps, in all of them.
template <int N>
DEVICE void block_sum(float (&x)[N]) {
    __shared__ float parts[N][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    __syncthreads();  // the parts may still be read from the call before
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) parts[i][warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(lane < warps ? parts[i][lane] : 0.0f);
}
