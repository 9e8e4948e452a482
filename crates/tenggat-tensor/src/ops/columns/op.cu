// Second half of sums over tokens: adds up the chunks of `columns.cuh`.

template <class T>
struct Finish {
    const float* sums;  // [samples, chunks, columns of `to`]
    Mat<T> to;          // [samples, N * cols]
    int chunks;
};

template <class T>
DEVICE void finish(const Finish<T>& a) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x, sample = blockIdx.y;
    if (col >= a.to.cols) return;
    float sum = 0.0f;
    for (int i = 0; i < a.chunks; i++) sum += a.sums[((int64_t)sample * a.chunks + i) * a.to.cols + col];
    narrow(a.to.row(sample)[col], sum);
}

#define KERNELS(T, S) \
    KERNEL void finish_columns_##S(Finish<T> a) { finish(a); }
FOR_FLOATS(KERNELS)
