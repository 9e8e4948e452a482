// Rows of a table by number. One thread takes V neighbouring channels.

template <class S, class T>
struct Gather {
    const uint32_t* ids;
    Mat<S> table;
    Mat<T> y;
};

template <int V, class S, class T>
DEVICE void gather(const Gather<S, T>& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.y)) return;
    float x[V];
    load<V>(x, a.table.row(a.ids[row]) + col);
    store<V>(a.y.row(row) + col, x);
}

#define GATHER(A, SA, B, SB)                                                   \
    KERNEL void embedding_##SA##_##SB(Gather<A, B> a) { gather<1>(a); }        \
    KERNEL void embedding_vec_##SA##_##SB(Gather<A, B> a) { gather<4>(a); }
GATHER(float, f32, float, f32)
GATHER(float, f32, bf16, bf16)
GATHER(bf16, bf16, float, f32)
GATHER(bf16, bf16, bf16, bf16)
