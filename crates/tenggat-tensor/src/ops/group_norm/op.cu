// Group norm of pictures, channels last.

// Sums over the pixels of every picture, column by column: of x, or of the square of its distance from the mean.
template <class T>
struct Sums {
    Mat<T> x;
    const float* mean;  // [pictures, c]; none in the first pass: 0
    Parts parts;
};

template <int V, class T>
DEVICE void sums(const Sums<T>& a) {
    each_row<1, V>(a.parts, [&](int64_t row, int col, float (&sums)[1][V]) {
        float x[V];
        load<V>(x, a.x.row(row) + col);
        const float* mean = a.mean ? a.mean + row / a.parts.tokens * a.x.cols + col : 0;
#pragma unroll
        for (int k = 0; k < V; k++) sums[0][k] += mean ? (x[k] - mean[k]) * (x[k] - mean[k]) : x[k];
    });
}

// What the columns of a group sum to, over `count`, in the place of each of them.
template <class T>
struct Group {
    Mat<T> sums, means;
    int per_group;
    float count;
};

template <class T>
DEVICE void group(const Group<T>& a) {
    int64_t row, col;
    if (!element<1>(row, col, a.means)) return;
    const T* sums = a.sums.row(row) + col / a.per_group * a.per_group;
    float sum = 0.0f;
    for (int i = 0; i < a.per_group; i++) sum += widen(sums[i]);
    narrow(a.means.row(row)[col], sum / a.count);
}

template <class T>
struct Apply {
    Mat<T> x, weight, bias, y;
    Mat<float> mean, variance;
    int pixels;
    float eps;
    int silu;
};

template <int V, class T>
DEVICE void apply(const Apply<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float x[V], w[V], b[V];
    load<V>(x, a.x.row(row) + col);
    load<V>(w, a.weight.data + col);
    load<V>(b, a.bias.data + col);
    const float *mean = a.mean.row(row / a.pixels) + col, *variance = a.variance.row(row / a.pixels) + col;
#pragma unroll
    for (int k = 0; k < V; k++) {
        x[k] = (x[k] - mean[k]) * rsqrtf(variance[k] + a.eps) * w[k] + b[k];
        if (a.silu) x[k] /= 1.0f + expf(-x[k]);
    }
    store<V>(a.y.row(row) + col, x);
}

#define KERNELS(T, S)                                                          \
    KERNEL void group_norm_sums_##S(Sums<T> a) { sums<1>(a); }                 \
    KERNEL void group_norm_sums_vec_##S(Sums<T> a) { sums<Wide<T>::V>(a); }   \
    KERNEL void group_norm_group_##S(Group<T> a) { group(a); }                 \
    KERNEL void group_norm_apply_##S(Apply<T> a) { apply<1>(a); }              \
    KERNEL void group_norm_apply_vec_##S(Apply<T> a) { apply<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
