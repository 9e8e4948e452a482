// Sums over the tokens of every sample, column by column, in two launches: chunks of tokens first, then the chunks.
// Mirrors `ops::columns::Parts`.
struct Parts {
    float* sums;  // [samples, chunks, N * cols]; null if none are wanted
    int tokens, cols, chunk, chunks;
};

// First of the V columns that a thread of `each_row` takes.
template <int V>
DEVICE int own_column() {
    return (blockIdx.x * 32 + threadIdx.x % 32) * V;
}

// Goes over the rows of one chunk, 32 * V columns of them, with N sums of every column. A block has 8 warps; `f(row, col,
// sums)` does what is to be done with V elements of a row, and adds what they contribute.
template <int N, int V, class F>
DEVICE void each_row(const Parts& a, F f) {
    __shared__ float shared[8][N][32 * V];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int col = own_column<V>();
    const int last = min(a.tokens, (int)(blockIdx.y + 1) * a.chunk);
    float sums[N][V];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < V; k++) sums[n][k] = 0.0f;
    if (col < a.cols)
        for (int t = blockIdx.y * a.chunk + warp; t < last; t += 8) f((int64_t)blockIdx.z * a.tokens + t, col, sums);
    if (!a.sums) return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < V; k++) shared[warp][n][lane * V + k] = sums[n][k];
    __syncthreads();
    float* to = a.sums + ((int64_t)blockIdx.z * a.chunks + blockIdx.y) * N * a.cols;
    for (int i = threadIdx.x; i < N * 32 * V; i += blockDim.x) {
        const int n = i / (32 * V), j = i % (32 * V), at = blockIdx.x * 32 * V + j;
        if (at >= a.cols) continue;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < 8; w++) sum += shared[w][n][j];
        to[n * a.cols + at] = sum;
    }
}
