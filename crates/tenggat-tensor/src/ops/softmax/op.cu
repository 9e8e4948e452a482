// Softmax of each row. A warp takes a row.

template <class T>
struct Forward {
    Mat<float> x;
    Mat<T> y;
};

template <class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= a.y.rows) return;
    const int n = a.y.cols, lane = threadIdx.x % 32;
    const float* x = a.x.row(row);
    float most = x[0], sum = 0.0f;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, x[i]);
    most = warp_max(most);
    for (int i = lane; i < n; i += 32) sum += expf(x[i] - most);
    const float inverse = 1.0f / warp_sum(sum);
    for (int i = lane; i < n; i += 32) narrow(a.y.row(row)[i], expf(x[i] - most) * inverse);
}

#define KERNELS(T, S) KERNEL void softmax_##S(Forward<T> a) { forward(a); }
FOR_FLOATS(KERNELS)
