// Classifier-free guidance in place. A warp takes one token; it reads it twice, so that nothing is rounded in
// between.

template <class T>
struct Forward {
    Mat<T> conditional, unconditional;
    float scale;
    int keep_norm;
};

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= a.conditional.rows) return;
    T* conditional = a.conditional.row(row);
    const T* unconditional = a.unconditional.row(row);
    const int first = threadIdx.x % 32 * V;
    float c[V], u[V], before = 0.0f, after = 0.0f;
    if (a.keep_norm) {
        for (int col = first; col < a.conditional.cols; col += 32 * V) {
            load<V>(c, conditional + col);
            load<V>(u, unconditional + col);
#pragma unroll
            for (int k = 0; k < V; k++) {
                const float guided = u[k] + a.scale * (c[k] - u[k]);
                before += c[k] * c[k];
                after += guided * guided;
            }
        }
        before = warp_sum(before);
        after = warp_sum(after);
    }
    const float factor = after > 0.0f ? sqrtf(before / after) : 1.0f;
    for (int col = first; col < a.conditional.cols; col += 32 * V) {
        load<V>(c, conditional + col);
        load<V>(u, unconditional + col);
#pragma unroll
        for (int k = 0; k < V; k++) c[k] = (u[k] + a.scale * (c[k] - u[k])) * factor;
        store<V>(conditional + col, c);
    }
}

#define KERNELS(T, S)                                                         \
    KERNEL void guidance_##S(Forward<T> a) { forward<1>(a); }                 \
    KERNEL void guidance_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
