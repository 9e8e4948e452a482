// GELU, tanh form.

template <class T>
struct Two {
    Mat<T> x, y;
};

constexpr float SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

DEVICE float gate(float x) { return 1.0f / (1.0f + __expf(-2.0f * SCALE * (x + CUBIC * x * x * x))); }

template <int V, class T, class F>
DEVICE void each(const Two<T>& a, F f) {
    const int per_row = a.y.cols / V;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.y.rows * per_row) return;
    const int64_t row = i / per_row, col = i % per_row * V;
    float x[V], y[V];
    load<V>(x, a.x.row(row) + col);
    f(x, y, a.y.row(row) + col);
    store<V>(a.y.row(row) + col, y);
}

template <int V, class T>
DEVICE void forward(const Two<T>& a) {
    each<V>(a, [](const float (&x)[V], float (&y)[V], const T*) {
#pragma unroll
        for (int k = 0; k < V; k++) y[k] = x[k] * gate(x[k]);
    });
}

// y holds the output gradient and becomes that of the input.
template <int V, class T>
DEVICE void backward(const Two<T>& a) {
    each<V>(a, [](const float (&x)[V], float (&d)[V], const T* from) {
        load<V>(d, from);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float s = gate(x[k]), slope = 2.0f * SCALE + 6.0f * SCALE * CUBIC * x[k] * x[k];
            d[k] *= s + x[k] * s * (1.0f - s) * slope;
        }
    });
}

#define KERNELS(T, S)                                                            \
    KERNEL void gelu_forward_##S(Two<T> a) { forward<1>(a); }                    \
    KERNEL void gelu_forward_wide_##S(Two<T> a) { forward<Wide<T>::V>(a); }      \
    KERNEL void gelu_backward_##S(Two<T> a) { backward<1>(a); }                  \
    KERNEL void gelu_backward_wide_##S(Two<T> a) { backward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
