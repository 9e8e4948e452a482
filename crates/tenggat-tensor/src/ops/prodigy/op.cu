// Prodigy on flat buffers, V neighbouring values at a time.

// First pass: moments, sum of gradients, and for each chunk of values two sums. A block takes one chunk.
struct Accumulate {
    Mat<float> parameter, gradient, clip, start, m, v, s;
    float* sums;  // distance and size of each chunk
    int chunk;
    float beta1, beta2, beta3, l2, first, second, third;
};

template <int V>
DEVICE void accumulate(const Accumulate& a) {
    const int64_t n = a.parameter.cols, from = (int64_t)blockIdx.x * a.chunk;
    const int64_t end = from + a.chunk < n ? from + a.chunk : n;
    const float factor = a.clip.data[1];
    float sums[2] = {};
    for (int64_t at = from + threadIdx.x * V; at < end; at += blockDim.x * V) {
        float p[V], g[V], p0[V], m[V], v[V], s[V];
        load<V>(p, a.parameter.data + at);
        load<V>(g, a.gradient.data + at);
        load<V>(p0, a.start.data + at);
        load<V>(m, a.m.data + at);
        load<V>(v, a.v.data + at);
        load<V>(s, a.s.data + at);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float d = g[k] * factor + a.l2 * p[k];
            m[k] = a.beta1 * m[k] + a.first * d;
            v[k] = a.beta2 * v[k] + a.second * d * d;
            s[k] = a.beta3 * s[k] + a.third * d;
            sums[0] += d * (p0[k] - p[k]);
            sums[1] += fabsf(s[k]);
        }
        store<V>(a.m.data + at, m);
        store<V>(a.v.data + at, v);
        store<V>(a.s.data + at, s);
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    a.sums[2 * blockIdx.x] = sums[0];
    a.sums[2 * blockIdx.x + 1] = sums[1];
}

KERNEL void prodigy_accumulate(Accumulate a) { accumulate<1>(a); }
KERNEL void prodigy_accumulate_vec(Accumulate a) { accumulate<4>(a); }

// Second pass.
struct Update {
    Mat<float> parameter, m, v;
    float step_size, eps, decay;
};

template <int V>
DEVICE void update(const Update& a) {
    const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= a.parameter.cols) return;
    float p[V], m[V], v[V];
    load<V>(p, a.parameter.data + at);
    load<V>(m, a.m.data + at);
    load<V>(v, a.v.data + at);
#pragma unroll
    for (int k = 0; k < V; k++) p[k] = p[k] * a.decay - a.step_size * (m[k] / (sqrtf(v[k]) + a.eps));
    store<V>(a.parameter.data + at, p);
}

KERNEL void prodigy_update(Update a) { update<1>(a); }
KERNEL void prodigy_update_vec(Update a) { update<4>(a); }
