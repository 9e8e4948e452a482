// SwiGLU gate. One thread takes V neighbouring channels.

template <class T>
struct Forward {
    Mat<T> gate, up, y;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    const int per_row = a.y.cols / V;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.y.rows * per_row) return;
    const int64_t row = i / per_row, col = i % per_row * V;
    float gate[V], up[V];
    load<V>(gate, a.gate.row(row) + col);
    load<V>(up, a.up.row(row) + col);
#pragma unroll
    for (int k = 0; k < V; k++) up[k] *= gate[k] / (1.0f + expf(-gate[k]));
    store<V>(a.y.row(row) + col, up);
}

#define KERNELS(T, S)                                                       \
    KERNEL void swiglu_##S(Forward<T> a) { forward<1>(a); }                 \
    KERNEL void swiglu_wide_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
