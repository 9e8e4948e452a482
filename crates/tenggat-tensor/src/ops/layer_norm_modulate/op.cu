// Layer norm and modulation. A block takes a row.

template <class T>
struct Forward {
    Mat<T> x, modulation, y;
    Mat<float> stats;
    int tokens;
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
    if (threadIdx.x == 0) {
        a.stats.row(row)[0] = mean;
        a.stats.row(row)[1] = rstd;
    }
    const T *shift = a.modulation.row(row / a.tokens), *scale = shift + c;
    for (int i = first; i < c; i += step) {
        float s[V], b[V];
        load<V>(v, x + i);
        load<V>(s, scale + i);
        load<V>(b, shift + i);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = (v[k] - mean) * rstd * (1.0f + s[k]) + b[k];
        store<V>(a.y.row(row) + i, v);
    }
}

// Adds the input gradient to dx.
template <class T>
struct Input {
    Mat<T> x, modulation;
    Mat<float> stats;
    Mat<T> dy, dx;
    int tokens;
};

template <int V, class T>
DEVICE void backward_input(const Input<T>& a) {
    const int64_t row = blockIdx.x;
    const int c = a.x.cols, step = blockDim.x * V, first = threadIdx.x * V;
    const T *x = a.x.row(row), *dy = a.dy.row(row), *scale = a.modulation.row(row / a.tokens) + c;
    const float mean = a.stats.row(row)[0], rstd = a.stats.row(row)[1];
    float n[V], g[V], s[V], sums[2] = {0.0f, 0.0f};
    for (int i = first; i < c; i += step) {
        load<V>(n, x + i);
        load<V>(g, dy + i);
        load<V>(s, scale + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float gk = g[k] * (1.0f + s[k]);
            sums[0] += gk;
            sums[1] += gk * (n[k] - mean) * rstd;
        }
    }
    block_sum<2>(sums);
    const float mean_g = sums[0] / c, mean_gn = sums[1] / c;
    for (int i = first; i < c; i += step) {
        float dx[V];
        load<V>(n, x + i);
        load<V>(g, dy + i);
        load<V>(s, scale + i);
        load<V>(dx, a.dx.row(row) + i);
#pragma unroll
        for (int k = 0; k < V; k++)
            dx[k] += rstd * (g[k] * (1.0f + s[k]) - mean_g - (n[k] - mean) * rstd * mean_gn);
        store<V>(a.dx.row(row) + i, dx);
    }
}

// dshift = sum over tokens of dy; dscale likewise of dy times the normed input.
template <class T>
struct Modulation {
    Mat<T> x;
    Mat<float> stats;
    Mat<T> dy;
    Parts parts;
};

template <int V, class T>
DEVICE void backward_modulation(const Modulation<T>& a) {
    sum_columns<2, V>(a.parts, [&](int64_t row, int col, float (&sums)[2][V]) {
        const float mean = a.stats.row(row)[0], rstd = a.stats.row(row)[1];
        float x[V], d[V];
        load<V>(x, a.x.row(row) + col);
        load<V>(d, a.dy.row(row) + col);
#pragma unroll
        for (int k = 0; k < V; k++) {
            sums[0][k] += d[k];
            sums[1][k] += d[k] * (x[k] - mean) * rstd;
        }
    });
}

#define KERNELS(T, S)                                                                                    \
    KERNEL void layer_norm_forward_##S(Forward<T> a) { forward<1>(a); }                                  \
    KERNEL void layer_norm_forward_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }                    \
    KERNEL void layer_norm_backward_input_##S(Input<T> a) { backward_input<1>(a); }                      \
    KERNEL void layer_norm_backward_input_vec_##S(Input<T> a) { backward_input<Wide<T>::V>(a); }        \
    KERNEL void layer_norm_backward_modulation_##S(Modulation<T> a) { backward_modulation<1>(a); }       \
    KERNEL void layer_norm_backward_modulation_vec_##S(Modulation<T> a) { backward_modulation<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
