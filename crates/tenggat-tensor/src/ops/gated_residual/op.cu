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
    load<V>(gate, a.gate.row(row / a.tokens) + col);
    load<V>(y, a.y.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) x[k] += gate[k] * y[k];
    store<V>(a.out.row(row) + col, x);
}

// dy = gate * dout.
template <class T>
struct Input {
    Mat<T> gate, dout, dy;
    int tokens;
};

template <int V, class T>
DEVICE void backward_input(const Input<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.dy)) return;
    float gate[V], d[V];
    load<V>(gate, a.gate.row(row / a.tokens) + col);
    load<V>(d, a.dout.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) d[k] *= gate[k];
    store<V>(a.dy.row(row) + col, d);
}

// dgate = sum over tokens of dout * y.
template <class T>
struct Gate {
    Mat<T> y, dout;
    Parts parts;
};

template <int V, class T>
DEVICE void backward_gate(const Gate<T>& a) {
    sum_columns<1, V>(a.parts, [&](int64_t row, int col, float (&sums)[1][V]) {
        float y[V], d[V];
        load<V>(y, a.y.row(row) + col);
        load<V>(d, a.dout.row(row) + col);
#pragma unroll
        for (int k = 0; k < V; k++) sums[0][k] += d[k] * y[k];
    });
}

#define KERNELS(T, S)                                                                                \
    KERNEL void gated_residual_forward_##S(Forward<T> a) { forward<1>(a); }                          \
    KERNEL void gated_residual_forward_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }            \
    KERNEL void gated_residual_backward_input_##S(Input<T> a) { backward_input<1>(a); }              \
    KERNEL void gated_residual_backward_input_vec_##S(Input<T> a) { backward_input<Wide<T>::V>(a); } \
    KERNEL void gated_residual_backward_gate_##S(Gate<T> a) { backward_gate<1>(a); }                 \
    KERNEL void gated_residual_backward_gate_vec_##S(Gate<T> a) { backward_gate<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
