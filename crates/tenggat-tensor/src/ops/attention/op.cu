// Attention without tensor cores, for GPUs without cuDNN. Channels are cut into 32 * CH; heads have at most 128.
//
// A warp takes ROWS rows of one head (queries; in the second backward kernel keys) and goes over the others in tiles of
// 32, which the block holds in shared memory. For scores a lane has a row of the tile, for results a channel.

constexpr int TILE = 32;
constexpr int ROWS = 4;

struct Layout {
    const int* key_lens;
    int tokens, heads, d;
    float scale;
};

// Where a block works.
struct Spot {
    int sample, head, length;
    int64_t first_row;  // of the sample
};

DEVICE Spot spot(const Layout& l) {
    const int sample = blockIdx.y / l.heads;
    return {sample, (int)blockIdx.y % l.heads, l.key_lens[sample], (int64_t)sample * l.tokens};
}

// 32 rows of a head, zeros beyond `rows` and beyond the head's channels.
template <int CH, class T>
DEVICE void fetch(float (&tile)[TILE][32 * CH + 1], const Mat<T>& from, const Spot& at, int first, int rows, int d) {
    for (int i = threadIdx.x; i < TILE * 32 * CH; i += blockDim.x) {
        const int row = i / (32 * CH), c = i % (32 * CH);
        const bool inside = first + row < rows && c < d;
        tile[row][c] = inside ? widen(from.row(at.first_row + first + row)[at.head * d + c]) : 0.0f;
    }
}

// Product of this lane's row of the tile with a row in device memory, which all lanes read at once.
template <int CH, class T>
DEVICE float dot(const float (&tile)[TILE][32 * CH + 1], const T* row, int d) {
    float sum = 0.0f;
    const float* mine = tile[threadIdx.x % 32];
    for (int c = 0; c < d; c++) sum += mine[c] * widen(row[c]);
    return sum;
}

// Adds lane j's weight times row j of the tile to this lane's channels.
template <int CH>
DEVICE void accumulate(float (&to)[CH], float weight, const float (&tile)[TILE][32 * CH + 1]) {
    const int lane = threadIdx.x % 32;
    for (int j = 0; j < TILE; j++) {
        const float w = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
        for (int i = 0; i < CH; i++) to[i] += w * tile[j][lane + 32 * i];
    }
}

template <int CH, class T>
DEVICE void write(const Mat<T>& to, int64_t row, int head, int d, const float (&values)[CH], float factor) {
#pragma unroll
    for (int i = 0; i < CH; i++) {
        const int c = threadIdx.x % 32 + 32 * i;
        if (c < d) narrow(to.row(row)[head * d + c], values[i] * factor);
    }
}

template <class T>
struct Forward {
    Mat<T> q, k, v, o;
    Mat<float> lse;
    Layout layout;
};

template <int CH, class T>
DEVICE void forward(const Forward<T>& a) {
    __shared__ float keys[TILE][32 * CH + 1], values[TILE][32 * CH + 1];
    const Layout& l = a.layout;
    const Spot at = spot(l);
    const int lane = threadIdx.x % 32, first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    float o[ROWS][CH], most[ROWS], sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        most[r] = -1e30f;
        sum[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < CH; i++) o[r][i] = 0.0f;
    }
    for (int tile = 0; tile < at.length; tile += TILE) {
        __syncthreads();
        fetch<CH>(keys, a.k, at, tile, at.length, l.d);
        fetch<CH>(values, a.v, at, tile, at.length, l.d);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= l.tokens) continue;
            const T* q = a.q.row(at.first_row + first + r) + at.head * l.d;
            const float s = tile + lane < at.length ? dot<CH>(keys, q, l.d) * l.scale : -1e30f;
            const float now = fmaxf(most[r], warp_max(s)), shrink = __expf(most[r] - now);
            const float p = tile + lane < at.length ? __expf(s - now) : 0.0f;
            most[r] = now;
            sum[r] = sum[r] * shrink + warp_sum(p);
#pragma unroll
            for (int i = 0; i < CH; i++) o[r][i] *= shrink;
            accumulate<CH>(o[r], p, values);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= l.tokens) continue;
        const int64_t row = at.first_row + first + r;
        write<CH>(a.o, row, at.head, l.d, o[r], 1.0f / sum[r]);
        if (lane == 0) a.lse.row(row)[at.head] = most[r] + logf(sum[r]);
    }
}

template <class T>
struct Backward {
    Mat<T> q, k, v, o, d_o;
    Mat<float> lse, products;  // products: rowsum(dO * O)
    Mat<T> dq, dk, dv;
    Layout layout;
};

// D = rowsum(dO * O), one warp per row and head.
template <class T>
DEVICE void products(const Backward<T>& a) {
    const Layout& l = a.layout;
    const int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int64_t row = warp / l.heads, head = warp % l.heads;
    if (row >= a.o.rows) return;
    float sum = 0.0f;
    for (int c = threadIdx.x % 32; c < l.d; c += 32)
        sum += widen(a.o.row(row)[head * l.d + c]) * widen(a.d_o.row(row)[head * l.d + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) a.products.row(row)[head] = sum;
}

// dQ = scale * dS * K; a warp takes queries.
template <int CH, class T>
DEVICE void backward_queries(const Backward<T>& a) {
    __shared__ float keys[TILE][32 * CH + 1], values[TILE][32 * CH + 1];
    const Layout& l = a.layout;
    const Spot at = spot(l);
    const int lane = threadIdx.x % 32, first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    float dq[ROWS][CH];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < CH; i++) dq[r][i] = 0.0f;
    for (int tile = 0; tile < at.length; tile += TILE) {
        __syncthreads();
        fetch<CH>(keys, a.k, at, tile, at.length, l.d);
        fetch<CH>(values, a.v, at, tile, at.length, l.d);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= l.tokens) continue;
            const int64_t row = at.first_row + first + r;
            float ds = 0.0f;
            if (tile + lane < at.length) {
                const float s = dot<CH>(keys, a.q.row(row) + at.head * l.d, l.d) * l.scale;
                const float dp = dot<CH>(values, a.d_o.row(row) + at.head * l.d, l.d);
                ds = __expf(s - a.lse.row(row)[at.head]) * (dp - a.products.row(row)[at.head]);
            }
            accumulate<CH>(dq[r], ds, keys);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (first + r < l.tokens) write<CH>(a.dq, at.first_row + first + r, at.head, l.d, dq[r], l.scale);
}

// dV = Pᵀ * dO and dK = scale * dSᵀ * Q; a warp takes keys. Keys past the length get zeros.
template <int CH, class T>
DEVICE void backward_keys(const Backward<T>& a) {
    __shared__ float queries[TILE][32 * CH + 1], gradients[TILE][32 * CH + 1];
    const Layout& l = a.layout;
    const Spot at = spot(l);
    const int lane = threadIdx.x % 32, first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    float dk[ROWS][CH], dv[ROWS][CH];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < CH; i++) dk[r][i] = dv[r][i] = 0.0f;
    for (int tile = 0; tile < l.tokens; tile += TILE) {
        __syncthreads();
        fetch<CH>(queries, a.q, at, tile, l.tokens, l.d);
        fetch<CH>(gradients, a.d_o, at, tile, l.tokens, l.d);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= at.length) continue;
            const int64_t row = at.first_row + first + r, query = at.first_row + tile + lane;
            float p = 0.0f, ds = 0.0f;
            if (tile + lane < l.tokens) {
                const float s = dot<CH>(queries, a.k.row(row) + at.head * l.d, l.d) * l.scale;
                const float dp = dot<CH>(gradients, a.v.row(row) + at.head * l.d, l.d);
                p = __expf(s - a.lse.row(query)[at.head]);
                ds = p * (dp - a.products.row(query)[at.head]);
            }
            accumulate<CH>(dv[r], p, gradients);
            accumulate<CH>(dk[r], ds, queries);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= l.tokens) continue;
        write<CH>(a.dk, at.first_row + first + r, at.head, l.d, dk[r], l.scale);
        write<CH>(a.dv, at.first_row + first + r, at.head, l.d, dv[r], 1.0f);
    }
}

// Softmax of rows of scores over their first `length` columns, a block per row; zeros beyond.
template <class T>
struct Softmax {
    Mat<float> scores;
    Mat<T> to;
    Mat<float> lse;
    int length;
};

template <class T>
DEVICE void softmax(const Softmax<T>& a) {
    __shared__ float parts[32];
    const float* s = a.scores.row(blockIdx.x);
    float most = -1e30f;
    for (int i = threadIdx.x; i < a.length; i += blockDim.x) most = fmaxf(most, s[i]);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    most = warp_max(lane < warps ? parts[lane] : -1e30f);
    float sum[1] = {0.0f};
    for (int i = threadIdx.x; i < a.length; i += blockDim.x) sum[0] += __expf(s[i] - most);
    block_sum<1>(sum);
    const float factor = 1.0f / sum[0];
    for (int i = threadIdx.x; i < a.to.cols; i += blockDim.x)
        narrow(a.to.row(blockIdx.x)[i], i < a.length ? __expf(s[i] - most) * factor : 0.0f);
    if (threadIdx.x == 0) a.lse.row(blockIdx.x)[0] = most + logf(sum[0]);
}

#define WIDTHS(T, S, CH)                                                                                       \
    KERNEL void attention_forward_##CH##_##S(Forward<T> a) { forward<CH>(a); }                                 \
    KERNEL void attention_backward_queries_##CH##_##S(Backward<T> a) { backward_queries<CH>(a); }              \
    KERNEL void attention_backward_keys_##CH##_##S(Backward<T> a) { backward_keys<CH>(a); }
#define KERNELS(T, S)                                                                   \
    KERNEL void attention_softmax_##S(Softmax<T> a) { softmax(a); }                     \
    KERNEL void attention_products_##S(Backward<T> a) { products(a); }                  \
    WIDTHS(T, S, 1) WIDTHS(T, S, 2) WIDTHS(T, S, 4)
FOR_FLOATS(KERNELS)
