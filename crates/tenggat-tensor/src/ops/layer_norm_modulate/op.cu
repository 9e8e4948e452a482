// Layer norm and modulation. A block takes whole rows, which its threads hold in registers.

// Calls `f(piece, column)` for what a thread has of a row: PIECES packs of V columns, a block's width apart, of which some
// may not be there.
template <int V, int PIECES, class F>
DEVICE void each_piece(int cols, F f) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int col = (threadIdx.x + p * blockDim.x) * V;
        if (col < cols) f(p, col);
    }
}

template <class T>
struct Forward {
    Mat<T> x, modulation, y;
    Mat<float> stats;
    int tokens;
    float inverse;  // of the number of columns
    float eps;
};

template <int V, int PIECES, class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t row = blockIdx.x;
    const int c = a.x.cols;
    float v[PIECES][V], sum[1] = {0.0f};
    each_piece<V, PIECES>(c, [&](int p, int col) {
        load<V>(v[p], a.x.row(row) + col);
#pragma unroll
        for (int k = 0; k < V; k++) sum[0] += v[p][k];
    });
    block_sum<1>(sum);
    const float mean = sum[0] * a.inverse;
    sum[0] = 0.0f;
    each_piece<V, PIECES>(c, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < V; k++) {
            v[p][k] -= mean;
            sum[0] += v[p][k] * v[p][k];
        }
    });
    block_sum<1>(sum);
    const float rstd = rsqrtf(sum[0] * a.inverse + a.eps);
    if (threadIdx.x == 0) {
        a.stats.row(row)[0] = mean;
        a.stats.row(row)[1] = rstd;
    }
    const T *shift = a.modulation.row(sample_of(row, a.tokens)), *scale = shift + c;
    each_piece<V, PIECES>(c, [&](int p, int col) {
        float s[V], b[V];
        load<V>(s, scale + col);
        load<V>(b, shift + col);
#pragma unroll
        for (int k = 0; k < V; k++) b[k] += v[p][k] * rstd * (1.0f + s[k]);
        store<V>(a.y.row(row) + col, b);
    });
}

// Adds the input gradient to dx. On the way, if they are wanted: dshift = sum over tokens of dy, dscale likewise of dy times
// the normed input. A block goes over the rows of one chunk.
template <class T>
struct Backward {
    Mat<T> x, modulation;
    Mat<float> stats;
    Mat<T> dy, dx;
    Parts parts;
    float inverse;
};

template <int V, int PIECES, class T>
DEVICE void backward(const Backward<T>& a) {
    const int c = a.x.cols;
    const int64_t sample = blockIdx.y;
    float scale[PIECES][V], dshift[PIECES][V], dscale[PIECES][V];
    each_piece<V, PIECES>(c, [&](int p, int col) {
        load<V>(scale[p], a.modulation.row(sample) + c + col);
#pragma unroll
        for (int k = 0; k < V; k++) {
            scale[p][k] += 1.0f;
            dshift[p][k] = dscale[p][k] = 0.0f;
        }
    });
    const int first = blockIdx.x * a.parts.chunk, last = min(a.parts.tokens, first + a.parts.chunk);
    for (int t = first; t < last; t++) {
        const int64_t row = sample * a.parts.tokens + t;
        const float mean = a.stats.row(row)[0], rstd = a.stats.row(row)[1];
        float n[PIECES][V], g[PIECES][V], sums[2] = {0.0f, 0.0f};
        each_piece<V, PIECES>(c, [&](int p, int col) {
            load<V>(n[p], a.x.row(row) + col);
            load<V>(g[p], a.dy.row(row) + col);
#pragma unroll
            for (int k = 0; k < V; k++) {
                n[p][k] = (n[p][k] - mean) * rstd;
                dshift[p][k] += g[p][k];
                dscale[p][k] += g[p][k] * n[p][k];
                g[p][k] *= scale[p][k];
                sums[0] += g[p][k];
                sums[1] += g[p][k] * n[p][k];
            }
        });
        block_sum<2>(sums);
        const float mean_g = sums[0] * a.inverse, mean_gn = sums[1] * a.inverse;
        each_piece<V, PIECES>(c, [&](int p, int col) {
            float dx[V];
            load<V>(dx, a.dx.row(row) + col);
#pragma unroll
            for (int k = 0; k < V; k++) dx[k] += rstd * (g[p][k] - mean_g - n[p][k] * mean_gn);
            store<V>(a.dx.row(row) + col, dx);
        });
    }
    if (!a.parts.sums) return;
    float* to = a.parts.sums + (sample * a.parts.chunks + blockIdx.x) * 2 * c;
    each_piece<V, PIECES>(c, [&](int p, int col) {
        store<V>(to + col, dshift[p]);
        store<V>(to + c + col, dscale[p]);
    });
}

// At most 512 threads hold a row: 8192 columns of bf16 or 4096 of f32 where it can be read 16 bytes at a time, else 4096.
#define KERNELS(T, S)                                                                                            \
    KERNEL void __launch_bounds__(512) layer_norm_forward_##S(Forward<T> a) { forward<1, 8>(a); }                \
    KERNEL void __launch_bounds__(512) layer_norm_forward_vec_##S(Forward<T> a) { forward<Wide<T>::V, 2>(a); }  \
    KERNEL void __launch_bounds__(512) layer_norm_backward_##S(Backward<T> a) { backward<1, 8>(a); }             \
    KERNEL void __launch_bounds__(512) layer_norm_backward_vec_##S(Backward<T> a) { backward<Wide<T>::V, 2>(a); }
FOR_FLOATS(KERNELS)
