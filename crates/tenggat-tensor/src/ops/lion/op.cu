// Lion on flat buffers, V neighbouring values a thread.

struct Step {
    Mat<float> parameter, gradient, clip, m;
    float lr, decay, beta1, beta2, rest1, rest2;
};

template <int V>
DEVICE void step(const Step& a) {
    const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= a.parameter.cols) return;
    const float factor = a.clip.data[1];
    float p[V], g[V], m[V];
    load<V>(p, a.parameter.data + at);
    load<V>(g, a.gradient.data + at);
    load<V>(m, a.m.data + at);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float clipped = g[k] * factor, direction = a.beta1 * m[k] + a.rest1 * clipped;
        const float up = direction > 0.0f ? a.lr : 0.0f, down = direction < 0.0f ? a.lr : 0.0f;
        p[k] = p[k] * a.decay - up + down;
        m[k] = a.beta2 * m[k] + a.rest2 * clipped;
    }
    store<V>(a.parameter.data + at, p);
    store<V>(a.m.data + at, m);
}

KERNEL void lion_step(Step a) { step<1>(a); }
KERNEL void lion_step_vec(Step a) { step<4>(a); }
