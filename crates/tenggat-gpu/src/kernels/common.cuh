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

template <int V, class T>
DEVICE void store(T* to, const float (&from)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) narrow(pack.v[i], from[i]);
    *(Pack<T, V>*)to = pack;
}

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
