// RMS norm with a weight per column. A block takes a row.

template <class T>
struct Forward {
    Mat<T> x, weight, y;
    float eps;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t row = blockIdx.x;
    const int c = a.x.cols, step = blockDim.x * V, first = threadIdx.x * V;
    const T* x = a.x.row(row);
    float v[V], w[V], sum[1] = {0.0f};
    for (int i = first; i < c; i += step) {
        load<V>(v, x + i);
#pragma unroll
        for (int k = 0; k < V; k++) sum[0] += v[k] * v[k];
    }
    block_sum<1>(sum);
    const float factor = rsqrtf(sum[0] / c + a.eps);
    for (int i = first; i < c; i += step) {
        load<V>(v, x + i);
        load<V>(w, a.weight.data + i);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] *= factor * w[k];
        store<V>(a.y.row(row) + i, v);
    }
}

#define KERNELS(T, S)                                                            \
    KERNEL void rms_norm_##S(Forward<T> a) { forward<1>(a); }                    \
    KERNEL void rms_norm_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
