// Gated residual. Rows are tokens; the gate has one row per sample.

template <class T>
struct Forward {
    Mat<T> x, gate, y, out;
    int tokens;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.out)) return;
    float x[V], gate[V], y[V];
    load<V>(x, a.x.row(row) + col);
    load<V>(gate, a.gate.row(sample_of(row, a.tokens)) + col);
    load<V>(y, a.y.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) x[k] += gate[k] * y[k];
    store<V>(a.out.row(row) + col, x);
}

// dy = gate * dout, and dgate = sum over tokens of dout * y, if it is wanted.
template <class T>
struct Backward {
    Mat<T> gate, y, dout, dy;
    Parts parts;
};

template <int V, class T>
DEVICE void backward(const Backward<T>& a) {
    const bool sums_wanted = a.parts.sums;
    float gate[V];
    if (own_column<V>() < a.parts.cols) load<V>(gate, a.gate.row(blockIdx.z) + own_column<V>());
    each_row<1, V>(a.parts, [&](int64_t row, int col, float (&sums)[1][V]) {
        float y[V], d[V];
        load<V>(d, a.dout.row(row) + col);
        if (sums_wanted) {
            load<V>(y, a.y.row(row) + col);
#pragma unroll
            for (int k = 0; k < V; k++) sums[0][k] += d[k] * y[k];
        }
#pragma unroll
        for (int k = 0; k < V; k++) d[k] *= gate[k];
        store<V>(a.dy.row(row) + col, d);
    });
}

#define KERNELS(T, S)                                                                        \
    KERNEL void gated_residual_forward_##S(Forward<T> a) { forward<1>(a); }                  \
    KERNEL void gated_residual_forward_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }    \
    KERNEL void gated_residual_backward_##S(Backward<T> a) { backward<1>(a); }               \
    KERNEL void gated_residual_backward_vec_##S(Backward<T> a) { backward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
