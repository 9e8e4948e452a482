// Second half of sums over tokens: adds up the chunks of `columns.cuh`.

template <class T>
struct Finish {
    const float* sums;  // [samples, chunks, columns of `to`]
    Mat<T> to;          // [samples, N * cols]
    int chunks;
};

// A block of 8 warps takes 32 columns of a sample.
template <class T>
DEVICE void finish(const Finish<T>& a) {
    __shared__ float shared[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sample = blockIdx.y;
    const int64_t cols = a.to.cols, col = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (col < cols)
        for (int i = warp; i < a.chunks; i += 8) sum += a.sums[((int64_t)sample * a.chunks + i) * cols + col];
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || col >= cols) return;
#pragma unroll
    for (int w = 1; w < 8; w++) sum += shared[w][lane];
    narrow(a.to.row(sample)[col], sum);
}

#define KERNELS(T, S) \
    KERNEL void finish_columns_##S(Finish<T> a) { finish(a); }
FOR_FLOATS(KERNELS)
