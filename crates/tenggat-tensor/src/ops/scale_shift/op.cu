// Scale and shift per column. One thread takes V neighbouring columns.

template <class T>
struct Forward {
    Mat<T> x, scale, shift, y;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float x[V], scale[V], shift[V];
    load<V>(x, a.x.row(row) + col);
    load<V>(scale, a.scale.data + col);
    load<V>(shift, a.shift.data + col);
#pragma unroll
    for (int k = 0; k < V; k++) x[k] = x[k] * scale[k] + shift[k];
    store<V>(a.y.row(row) + col, x);
}

#define KERNELS(T, S)                                                            \
    KERNEL void scale_shift_##S(Forward<T> a) { forward<1>(a); }                 \
    KERNEL void scale_shift_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
