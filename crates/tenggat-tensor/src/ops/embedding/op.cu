// Rows of a table by number. One thread takes V neighbouring channels.

template <class S, class T>
struct Gather {
    const uint32_t* ids;
    Mat<S> table;
    Mat<T> y;
};

template <int V, class S, class T>
DEVICE void gather(const Gather<S, T>& a) {
    const int per_row = a.y.cols / V;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.y.rows * per_row) return;
    const int64_t row = i / per_row, col = i % per_row * V;
    float x[V];
    load<V>(x, a.table.row(a.ids[row]) + col);
    store<V>(a.y.row(row) + col, x);
}

#define GATHER(A, SA, B, SB)                                                   \
    KERNEL void embedding_##SA##_##SB(Gather<A, B> a) { gather<1>(a); }        \
    KERNEL void embedding_wide_##SA##_##SB(Gather<A, B> a) { gather<4>(a); }
GATHER(float, f32, float, f32)
GATHER(float, f32, bf16, bf16)
GATHER(bf16, bf16, float, f32)
GATHER(bf16, bf16, bf16, bf16)
