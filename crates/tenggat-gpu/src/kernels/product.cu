// A matrix product for shapes that cuBLASLt has no way of computing: tiles of 16 by 16, sums in 32 bits.

struct Multiply {
    const void *a, *b, *bias;
    void* c;
    int64_t a_row, a_col, b_row, b_col, c_row;  // elements from one row, and from one column, to the next
    int64_t rows, cols, inner;
    float alpha, beta;
};

template <class T, class U>
DEVICE void multiply(const Multiply& p) {
    constexpr int TILE = 16;
    __shared__ float left[TILE][TILE + 1], right[TILE][TILE + 1];
    const T *a = (const T*)p.a, *b = (const T*)p.b;
    const int64_t across = (p.cols + TILE - 1) / TILE;
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE;
    const int64_t row = blockIdx.x / across * TILE + i, col = blockIdx.x % across * TILE + j;
    float sum = 0.0f;
    for (int64_t k = 0; k < p.inner; k += TILE) {
        left[i][j] = row < p.rows && k + j < p.inner ? widen(a[row * p.a_row + (k + j) * p.a_col]) : 0.0f;
        right[i][j] = k + i < p.inner && col < p.cols ? widen(b[(k + i) * p.b_row + col * p.b_col]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int t = 0; t < TILE; t++) sum += left[i][t] * right[t][j];
        __syncthreads();
    }
    if (row >= p.rows || col >= p.cols) return;
    U* c = (U*)p.c + row * p.c_row + col;
    float value = p.alpha * sum;
    // What C held counts for nothing, not even as NaN, if beta is 0.
    if (p.beta != 0.0f) value += p.beta * widen(*c);
    if (p.bias) value += widen(((const U*)p.bias)[col]);
    narrow(*c, value);
}

KERNEL void product_f32_f32(Multiply p) { multiply<float, float>(p); }
KERNEL void product_bf16_bf16(Multiply p) { multiply<bf16, bf16>(p); }
KERNEL void product_bf16_f32(Multiply p) { multiply<bf16, float>(p); }
