// AdamW over flat buffers, and the norm that clips them.

struct Squares {
    const float* x;
    int64_t n;
    float* sums;  // one per block
};

// Every block sums a contiguous part, so that the grouping does not depend on the GPU.
KERNEL void sum_squares(Squares a) {
    const int64_t part = (a.n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * part;
    const int64_t last = first + part < a.n ? first + part : a.n;
    float sum[1] = {0.0f};
    for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) sum[0] += a.x[i] * a.x[i];
    block_sum<1>(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum[0];
}

struct Clip {
    const float* sums;
    int parts;
    float max_norm;  // below 0: none
    float* clip;     // norm, factor
};

// One block.
KERNEL void clip_factor(Clip a) {
    float sum[1] = {0.0f};
    for (int i = threadIdx.x; i < a.parts; i += blockDim.x) sum[0] += a.sums[i];
    block_sum<1>(sum);
    if (threadIdx.x > 0) return;
    const float norm = sqrtf(sum[0]);
    a.clip[0] = norm;
    a.clip[1] = a.max_norm < 0.0f ? 1.0f : fminf(a.max_norm / (norm + 1e-6f), 1.0f);
}

struct Step {
    float *p, *m, *v;
    const float *g, *clip;
    int64_t n;
    float decay, step_size, root_correction, l2, beta1, beta2, rest1, rest2, eps;
};

template <int V>
DEVICE void step(const Step& a) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= a.n) return;
    const float factor = a.clip[1];
    float p[V], g[V], m[V], v[V];
    load<V>(p, a.p + i);
    load<V>(g, a.g + i);
    load<V>(m, a.m + i);
    load<V>(v, a.v + i);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float d = g[k] * factor + a.l2 * p[k];
        m[k] = a.beta1 * m[k] + a.rest1 * d;
        v[k] = a.beta2 * v[k] + a.rest2 * d * d;
        p[k] = p[k] * a.decay - a.step_size * (m[k] / (sqrtf(v[k]) / a.root_correction + a.eps));
    }
    store<V>(a.p + i, p);
    store<V>(a.m + i, m);
    store<V>(a.v + i, v);
}

KERNEL void adamw(Step a) { step<1>(a); }
KERNEL void adamw_vec(Step a) { step<4>(a); }
