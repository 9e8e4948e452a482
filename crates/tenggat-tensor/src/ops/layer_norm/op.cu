// Layer norm with a weight and a bias per column. A block takes a row.

template <class T>
struct Forward {
    Mat<T> x, weight, bias, y;
    float eps;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t row = blockIdx.x;
    const int c = a.x.cols, step = blockDim.x * V, first = threadIdx.x * V;
    const T* x = a.x.row(row);
    float v[V], sum[1] = {0.0f};
    for (int i = first; i < c; i += step) {
        load<V>(v, x + i);
#pragma unroll
        for (int k = 0; k < V; k++) sum[0] += v[k];
    }
    block_sum<1>(sum);
    const float mean = sum[0] / c;
    sum[0] = 0.0f;
    for (int i = first; i < c; i += step) {
        load<V>(v, x + i);
#pragma unroll
        for (int k = 0; k < V; k++) sum[0] += (v[k] - mean) * (v[k] - mean);
    }
    block_sum<1>(sum);
    const float rstd = rsqrtf(sum[0] / c + a.eps);
    for (int i = first; i < c; i += step) {
        float w[V], b[V];
        load<V>(v, x + i);
        load<V>(w, a.weight.data + i);
        load<V>(b, a.bias.data + i);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = (v[k] - mean) * rstd * w[k] + b[k];
        store<V>(a.y.row(row) + i, v);
    }
}

#define KERNELS(T, S)                                                              \
    KERNEL void layer_norm_##S(Forward<T> a) { forward<1>(a); }                    \
    KERNEL void layer_norm_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
