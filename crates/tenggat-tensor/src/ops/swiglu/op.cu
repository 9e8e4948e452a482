// SwiGLU gate. One thread takes V neighbouring channels.

template <class T>
struct Forward {
    Mat<T> gate, up, y;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float gate[V], up[V];
    load<V>(gate, a.gate.row(row) + col);
    load<V>(up, a.up.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) up[k] *= gate[k] / (1.0f + expf(-gate[k]));
    store<V>(a.y.row(row) + col, up);
}

#define KERNELS(T, S)                                                       \
    KERNEL void swiglu_##S(Forward<T> a) { forward<1>(a); }                 \
    KERNEL void swiglu_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
