// AdamW whose moments are kept in 8 bits. Products and sums are rounded one by one, as the processor does:
// results are the same bit by bit. A block of threads takes several blocks of moments, one value a thread.

constexpr int BLOCK = 256, WARPS = BLOCK / 32;

struct Step {
    Mat<float> parameter, gradient, clip;
    Mat<uint8_t> m_codes, v_codes;
    Mat<float> m_scales, v_scales;
    float decay, step_size, root_correction, l2, beta1, beta2, rest1, rest2, eps;
    int per_block;         // blocks of moments that a block of threads takes
    float maps[2][BLOCK];  // numbers of the codes of both moments, rising
};

DEVICE float times(float x, float y) { return __fmul_rn(x, y); }
DEVICE float plus(float x, float y) { return __fadd_rn(x, y); }

// Code of the number nearest to x, the lower one where two are as near: how many midpoints lie below x.
DEVICE uint8_t code(const float (&midpoints)[BLOCK], float x) {
    int below = 0;
#pragma unroll
    for (int step = BLOCK / 2; step > 0; step /= 2)
        if (midpoints[below + step - 1] < x) below += step;
    return below;
}

KERNEL void adamw8bit_step(Step a) {
    __shared__ float values[2][BLOCK], midpoints[2][BLOCK], largest[2][WARPS];
    const int me = threadIdx.x;
#pragma unroll
    for (int map = 0; map < 2; map++) values[map][me] = a.maps[map][me];
    __syncthreads();
#pragma unroll
    for (int map = 0; map < 2; map++) {
        // Nothing lies above the last number, whose midpoint is never asked for.
        const float next = values[map][me + 1 < BLOCK ? me + 1 : me];
        midpoints[map][me] = plus(values[map][me], next) / 2.0f;
    }
    const int64_t n = a.parameter.cols, blocks = (n + BLOCK - 1) / BLOCK;
    const int64_t first = (int64_t)blockIdx.x * a.per_block;
    const float factor = a.clip.data[1];
    for (int64_t block = first; block < first + a.per_block && block < blocks; block++) {
        const int64_t at = block * BLOCK + me;
        const bool mine = at < n;
        float m = 0.0f, v = 0.0f;
        if (mine) {
            float p = a.parameter.data[at];
            m = times(values[0][a.m_codes.data[at]], a.m_scales.data[block]);
            v = times(values[1][a.v_codes.data[at]], a.v_scales.data[block]);
            const float g = plus(times(a.gradient.data[at], factor), times(a.l2, p));
            m = plus(times(a.beta1, m), times(a.rest1, g));
            v = plus(times(a.beta2, v), times(times(a.rest2, g), g));
            const float direction = m / plus(sqrtf(v) / a.root_correction, a.eps);
            a.parameter.data[at] = plus(times(p, a.decay), -times(a.step_size, direction));
        }
        const float most[2] = {warp_max(fabsf(m)), warp_max(fabsf(v))};
        // Midpoints are written; the scales of this block and the largest of the one before have been read.
        __syncthreads();
        if (me % 32 == 0) {
            largest[0][me / 32] = most[0];
            largest[1][me / 32] = most[1];
        }
        __syncthreads();
        float scale[2] = {};
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            scale[0] = fmaxf(scale[0], largest[0][warp]);
            scale[1] = fmaxf(scale[1], largest[1][warp]);
        }
        if (mine) {
            // The divisor of a block of zeros is not 0.
            a.m_codes.data[at] = code(midpoints[0], m / fmaxf(scale[0], 1e-38f));
            a.v_codes.data[at] = code(midpoints[1], v / fmaxf(scale[1], 1e-38f));
        }
        if (me == 0) {
            a.m_scales.data[block] = scale[0];
            a.v_scales.data[block] = scale[1];
        }
    }
}
