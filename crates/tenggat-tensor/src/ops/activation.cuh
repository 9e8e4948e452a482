// Activations y = x * gate(x), forward and backward. A file that includes it defines, for its kernels,
//     DEVICE float gate(float x);
//     DEVICE float slope(float x);  // of gate's argument
// where gate(x) = sigmoid(u(x)) and slope(x) = du/dx, and names them with ACTIVATION(name).

DEVICE float gate(float x);
DEVICE float slope(float x);

template <class T>
struct Two {
    Mat<T> x, y;
};

template <int V, class T>
DEVICE void forward(const Two<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float x[V];
    load<V>(x, a.x.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) x[k] *= gate(x[k]);
    store<V>(a.y.row(row) + col, x);
}

// y holds the output gradient and becomes that of the input: d(x * s) = s + x * s * (1 - s) * du/dx.
template <int V, class T>
DEVICE void backward(const Two<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float x[V], d[V];
    load<V>(x, a.x.row(row) + col);
    load<V>(d, a.y.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float s = gate(x[k]);
        d[k] *= s + x[k] * s * (1.0f - s) * slope(x[k]);
    }
    store<V>(a.y.row(row) + col, d);
}

#define OF_TYPE(name, T, S)                                                       \
    KERNEL void name##_forward_##S(Two<T> a) { forward<1>(a); }                   \
    KERNEL void name##_forward_vec_##S(Two<T> a) { forward<Wide<T>::V>(a); }     \
    KERNEL void name##_backward_##S(Two<T> a) { backward<1>(a); }                 \
    KERNEL void name##_backward_vec_##S(Two<T> a) { backward<Wide<T>::V>(a); }
#define ACTIVATION(name) OF_TYPE(name, float, f32) OF_TYPE(name, bf16, bf16)
