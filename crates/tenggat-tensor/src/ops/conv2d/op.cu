// 3x3 convolution by unfolding: a row of `columns` holds the nine pixels under an output pixel, tap after
// tap, normed and activated where the filter asks for it. The product with the weight is a library's.

// What the norm multiplies each pixel by, sqrt(c) / its length. A warp takes one pixel.
template <class T>
struct Lengths {
    Mat<T> x;
    float* factors;
    float root;
};

template <int V, class T>
DEVICE void lengths(const Lengths<T>& a) {
    const int64_t pixel = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (pixel >= a.x.rows) return;
    float sum = 0.0f;
    for (int i = threadIdx.x % 32 * V; i < a.x.cols; i += 32 * V) {
        float x[V];
        load<V>(x, a.x.row(pixel) + i);
#pragma unroll
        for (int k = 0; k < V; k++) sum += x[k] * x[k];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) a.factors[pixel] = a.root / fmaxf(sqrtf(sum), 1e-12f);
}

// Tap t of output place p reads input place (step * p + t - pad) >> shift, in each direction, and 0 outside.
template <class T>
struct Unfold {
    Mat<T> x, columns;
    const T* norm;         // none: 0
    const float* factors;  // of each input pixel, with a norm
    int first;             // output pixel of the first row of columns
    int height, width;     // of the input
    int out_height, out_width;
    int step, pad, shift;
};

template <int V, class T>
DEVICE void unfold(const Unfold<T>& a) {
    // A slab has fewer than 2^31 packs.
    const uint32_t c = a.x.cols, per_tap = c / V, i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = i / (9 * per_tap), within = i % (9 * per_tap), tap = within / per_tap;
    if (row >= (uint32_t)a.columns.rows) return;
    const uint32_t col = within % per_tap * V, pixel = a.first + row, line = pixel / a.out_width;
    const int at_y = line % a.out_height, at_x = pixel % a.out_width;
    const int y = (a.step * at_y + (int)(tap / 3) - a.pad) >> a.shift;
    const int x = (a.step * at_x + (int)(tap % 3) - a.pad) >> a.shift;
    float v[V] = {};
    if (y >= 0 && y < a.height && x >= 0 && x < a.width) {
        const int64_t source = ((int64_t)(line / a.out_height) * a.height + y) * a.width + x;
        load<V>(v, a.x.row(source) + col);
        if (a.norm) {
            const float factor = a.factors[source];
            float norm[V];
            load<V>(norm, a.norm + col);
#pragma unroll
            for (int k = 0; k < V; k++) {
                v[k] *= factor * norm[k];
                v[k] /= 1.0f + expf(-v[k]);
            }
        }
    }
    store<V>(a.columns.row(row) + tap * c + col, v);
}

#define KERNELS(T, S)                                                              \
    KERNEL void conv2d_lengths_##S(Lengths<T> a) { lengths<1>(a); }                \
    KERNEL void conv2d_lengths_vec_##S(Lengths<T> a) { lengths<Wide<T>::V>(a); }  \
    KERNEL void conv2d_unfold_##S(Unfold<T> a) { unfold<1>(a); }                   \
    KERNEL void conv2d_unfold_vec_##S(Unfold<T> a) { unfold<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
