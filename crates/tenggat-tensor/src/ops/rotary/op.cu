// Rotary position embedding, pairs d/2 channels apart. One thread turns V neighbouring pairs in place.

template <class T>
struct Forward {
    Mat<float> table;
    Mat<T> x;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    const int half = a.table.cols / 2, per_head = half / V, per_row = a.x.cols / 2 / V;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.x.rows * per_row) return;
    const int64_t row = i / per_row;
    const int within = i % per_row, head = within / per_head, j = within % per_head * V;
    const float* table = a.table.row(row) + j;
    T* x = a.x.row(row) + head * 2 * half + j;
    float cos[V], sin[V], re[V], im[V];
    load<V>(cos, table);
    load<V>(sin, table + half);
    load<V>(re, x);
    load<V>(im, x + half);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float turned = re[k] * cos[k] - im[k] * sin[k];
        im[k] = im[k] * cos[k] + re[k] * sin[k];
        re[k] = turned;
    }
    store<V>(x, re);
    store<V>(x + half, im);
}

#define KERNELS(T, S)                                               \
    KERNEL void rotary_##S(Forward<T> a) { forward<1>(a); }         \
    KERNEL void rotary_vec_##S(Forward<T> a) { forward<4>(a); }
FOR_FLOATS(KERNELS)
