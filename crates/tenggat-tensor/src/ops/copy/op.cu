// Copies and other work on single elements. `n` elements of `to` in rows; V at a time.

template <class T>
struct Two {
    Mat<T> from, to;
    float factor;
};

template <int V, class T, class F>
DEVICE void each(const Two<T>& a, F f) {
    int64_t row, col;
    if (!element<V>(row, col, a.to)) return;
    f(row, col);
}

template <int V, class T>
DEVICE void copy(const Two<T>& a) {
    each<V>(a, [&](int64_t row, int64_t col) {
        *(Pack<T, V>*)(a.to.row(row) + col) = *(const Pack<T, V>*)(a.from.row(row) + col);
    });
}

template <int V, class T>
DEVICE void fill(const Two<T>& a) {
    float x[V];
#pragma unroll
    for (int k = 0; k < V; k++) x[k] = a.factor;
    each<V>(a, [&](int64_t row, int64_t col) { store<V>(a.to.row(row) + col, x); });
}

template <int V, class T, class F>
DEVICE void update(const Two<T>& a, F f) {
    each<V>(a, [&](int64_t row, int64_t col) {
        float x[V], y[V];
        load<V>(x, a.from.row(row) + col);
        load<V>(y, a.to.row(row) + col);
#pragma unroll
        for (int k = 0; k < V; k++) y[k] = f(x[k], y[k]);
        store<V>(a.to.row(row) + col, y);
    });
}

template <int V, class T>
DEVICE void add_scaled(const Two<T>& a) {
    update<V>(a, [&](float x, float y) { return y + a.factor * x; });
}

template <int V, class T>
DEVICE void multiply(const Two<T>& a) {
    update<V>(a, [&](float x, float y) { return x * y; });
}

template <int V, class T>
DEVICE void lerp(const Two<T>& a) {
    update<V>(a, [&](float x, float y) { return y + a.factor * (x - y); });
}

template <int V, class T>
DEVICE void broadcast_row(const Two<T>& a) {
    each<V>(a, [&](int64_t row, int64_t col) {
        *(Pack<T, V>*)(a.to.row(row) + col) = *(const Pack<T, V>*)(a.from.data + col);
    });
}

#define ONE(name, T, S)                                              \
    KERNEL void name##_##S(Two<T> a) { name<1>(a); }                 \
    KERNEL void name##_vec_##S(Two<T> a) { name<Wide<T>::V>(a); }
#define ALL(T, S)          \
    ONE(copy, T, S)        \
    ONE(fill, T, S)        \
    ONE(add_scaled, T, S)  \
    ONE(multiply, T, S)    \
    ONE(lerp, T, S)        \
    ONE(broadcast_row, T, S)
FOR_FLOATS(ALL)

template <class A, class B>
struct Cast {
    Mat<A> from;
    Mat<B> to;
};

// Four at a time where both sides allow it.
template <int V, class A, class B>
DEVICE void cast(const Cast<A, B>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.to)) return;
    float x[V];
    load<V>(x, a.from.row(row) + col);
    store<V>(a.to.row(row) + col, x);
}

#define CAST(A, SA, B, SB)                                                    \
    KERNEL void cast_##SA##_##SB(Cast<A, B> a) { cast<1>(a); }                \
    KERNEL void cast_vec_##SA##_##SB(Cast<A, B> a) { cast<4>(a); }
CAST(float, f32, float, f32)
CAST(float, f32, bf16, bf16)
CAST(bf16, bf16, float, f32)
CAST(bf16, bf16, bf16, bf16)

// Bytes, moved as they are.
KERNEL void copy_u8(Two<uint8_t> a) { copy<1>(a); }
KERNEL void copy_vec_u8(Two<uint8_t> a) { copy<16>(a); }
KERNEL void cast_u8_u8(Cast<uint8_t, uint8_t> a) {
    copy<1>(Two<uint8_t>{a.from, a.to, 0.0f});
}
KERNEL void cast_vec_u8_u8(Cast<uint8_t, uint8_t> a) {
    copy<4>(Two<uint8_t>{a.from, a.to, 0.0f});
}
