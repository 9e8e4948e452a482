// Sums over the tokens of every sample, column by column, in two launches: chunks of tokens first, then the chunks.
// Mirrors `ops::columns::Parts`.
struct Parts {
    float* sums;  // [samples, chunks, N * cols]
    int tokens, cols, chunk, chunks;
};

// N sums of every column. A block of 8 warps takes 32 * V columns of one chunk; `f(row, col, sums)` adds what V
// elements of a row contribute.
template <int N, int V, class F>
DEVICE void sum_columns(const Parts& a, F f) {
    __shared__ float shared[8][N][32 * V];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int col = (blockIdx.x * 32 + lane) * V;
    const int last = min(a.tokens, (int)(blockIdx.y + 1) * a.chunk);
    float sums[N][V];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < V; k++) sums[n][k] = 0.0f;
    if (col < a.cols)
        for (int t = blockIdx.y * a.chunk + warp; t < last; t += 8) f((int64_t)blockIdx.z * a.tokens + t, col, sums);
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
