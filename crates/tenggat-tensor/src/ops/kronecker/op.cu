// Products of the small factor with every row. A row of t holds a matrix of q rows, a row of y one of l, all
// of k elements.

// to (+)= alpha * W * from in every row, W being w1 or its transpose. A thread takes V neighbouring elements
// of four rows of the result.
template <class W, class T>
struct Multiply {
    Mat<T> from, to;
    const W* w;
    int64_t w_row, w_col;  // elements to the next row and column of W
    int terms, rows, k;    // columns and rows of W; elements of a row of the matrices
    int add;
    float alpha;
};

constexpr int OWN = 4;

template <int V, class W, class T>
DEVICE void multiply(const Multiply<W, T>& a) {
    const int packs = a.k / V, groups = (a.rows + OWN - 1) / OWN;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.to.rows * groups * packs) return;
    const int64_t row = i / packs / groups;
    const int first = i / packs % groups * OWN, at = i % packs * V;
    float sum[OWN][V] = {};
    for (int term = 0; term < a.terms; term++) {
        float x[V];
        load<V>(x, a.from.row(row) + term * a.k + at);
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            if (first + own >= a.rows) break;
            const float w = a.alpha * widen(a.w[(first + own) * a.w_row + term * a.w_col]);
#pragma unroll
            for (int k = 0; k < V; k++) sum[own][k] += w * x[k];
        }
    }
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        if (first + own >= a.rows) break;
        T* to = a.to.row(row) + (first + own) * a.k + at;
        if (a.add) {
            float y[V];
            load<V>(y, to);
#pragma unroll
            for (int k = 0; k < V; k++) sum[own][k] += y[k];
        }
        store<V>(to, sum[own]);
    }
}

// Sums of dY * T^T over a chunk of rows, [l, q] for each chunk. A block takes four rows of dY and four of T.
template <class T>
struct Partial {
    Mat<T> t, dy;
    float* parts;
    int l, q, k, chunk;
};

template <int V, class T>
DEVICE void partial(const Partial<T>& a) {
    const int tiles = (a.q + OWN - 1) / OWN;
    const int first_i = blockIdx.x / tiles * OWN, first_j = blockIdx.x % tiles * OWN;
    const int64_t from = (int64_t)blockIdx.y * a.chunk;
    const int rows = a.t.rows - from < a.chunk ? (int)(a.t.rows - from) : a.chunk, packs = a.k / V;
    float sums[OWN * OWN] = {};
    for (int64_t n = threadIdx.x; n < (int64_t)rows * packs; n += blockDim.x) {
        const int64_t row = from + n / packs;
        const int at = n % packs * V;
        float dy[OWN][V];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            // Rows past the last are read as the last; nobody looks at their sums.
            const int mine = first_i + i < a.l ? first_i + i : a.l - 1;
            load<V>(dy[i], a.dy.row(row) + mine * a.k + at);
        }
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            const int mine = first_j + j < a.q ? first_j + j : a.q - 1;
            float t[V];
            load<V>(t, a.t.row(row) + mine * a.k + at);
#pragma unroll
            for (int i = 0; i < OWN; i++)
#pragma unroll
                for (int k = 0; k < V; k++) sums[i * OWN + j] += dy[i][k] * t[k];
        }
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    float* parts = a.parts + (int64_t)blockIdx.y * a.l * a.q;
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++)
            if (first_i + i < a.l && first_j + j < a.q)
                parts[(int64_t)(first_i + i) * a.q + first_j + j] = sums[i * OWN + j];
}

// dW1 = beta * dW1 + alpha * the sum of all chunks, in their order.
struct Total {
    const float* parts;
    Mat<float> dw1;
    int chunks;
    float alpha, beta;
};

KERNEL void kronecker_total(Total a) {
    const int64_t n = (int64_t)a.dw1.rows * a.dw1.cols;
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    for (int chunk = 0; chunk < a.chunks; chunk++) sum += a.parts[chunk * n + i];
    float& to = a.dw1.row(i / a.dw1.cols)[i % a.dw1.cols];
    // With beta 0, what was there is not read.
    to = a.beta == 0.0f ? a.alpha * sum : a.beta * to + a.alpha * sum;
}

#define MULTIPLY(W, SW, T, ST)                                                                          \
    KERNEL void kronecker_##SW##_##ST(Multiply<W, T> a) { multiply<1>(a); }                             \
    KERNEL void kronecker_vec_##SW##_##ST(Multiply<W, T> a) { multiply<Wide<T>::V>(a); }
MULTIPLY(float, f32, float, f32)
MULTIPLY(float, f32, bf16, bf16)
MULTIPLY(bf16, bf16, bf16, bf16)

#define PARTIAL(T, S)                                                                  \
    KERNEL void kronecker_partial_##S(Partial<T> a) { partial<1>(a); }                 \
    KERNEL void kronecker_partial_vec_##S(Partial<T> a) { partial<Wide<T>::V>(a); }
FOR_FLOATS(PARTIAL)
