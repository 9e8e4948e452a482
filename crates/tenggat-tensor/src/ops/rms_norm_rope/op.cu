// Head norm and rotary embedding. A warp takes one head of q, k or v of one token; a lane takes adjacent pairs.

// Pairs of a lane: heads have at most 32 * 2 * PAIRS channels.
constexpr int PAIRS = 4;

struct Segment {
    int tokens, joint_tokens, at, heads;
};

template <class T>
struct Forward {
    Mat<T> qkv, weights;
    Mat<float> rope;
    Mat<T> joint[3];
    Mat<float> rstd;
    Segment segment;
    float eps;
};

// Which head this warp has; false if there is none left.
struct Head {
    int64_t row, joint_row;
    int token, which, head;
};

template <class T>
DEVICE bool find(Head& h, const Mat<T>& qkv, const Segment& s) {
    const int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    h.row = warp / (3 * s.heads);
    if (h.row >= qkv.rows) return false;
    const int rest = warp % (3 * s.heads);
    h.which = rest / s.heads;
    h.head = rest % s.heads;
    h.token = h.row % s.tokens;
    h.joint_row = h.row / s.tokens * s.joint_tokens + s.at + h.token;
    return true;
}

template <class T>
DEVICE void forward(const Forward<T>& a) {
    Head h;
    if (!find(h, a.qkv, a.segment)) return;
    const int d = a.rope.cols, pairs = d / 2, lane = threadIdx.x % 32;
    const T* x = a.qkv.row(h.row) + h.which * a.joint[0].cols + h.head * d;
    T* y = a.joint[h.which].row(h.joint_row) + h.head * d;
    float v[PAIRS][2], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int p = lane + 32 * i;
        if (p < pairs) {
            load<2>(v[i], x + 2 * p);
            sum += v[i][0] * v[i][0] + v[i][1] * v[i][1];
        }
    }
    if (h.which == 2) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (lane + 32 * i < pairs) store<2>(y + 2 * (lane + 32 * i), v[i]);
        return;
    }
    const float rstd = rsqrtf(warp_sum(sum) / d + a.eps);
    if (lane == 0) a.rstd.row(h.row)[h.which * a.segment.heads + h.head] = rstd;
    const float *cosines = a.rope.row(h.token), *sines = cosines + pairs;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int p = lane + 32 * i;
        if (p >= pairs) continue;
        float w[2];
        load<2>(w, a.weights.row(h.which) + 2 * p);
        const float n0 = v[i][0] * rstd * w[0], n1 = v[i][1] * rstd * w[1];
        const float turned[2] = {n0 * cosines[p] - n1 * sines[p], n0 * sines[p] + n1 * cosines[p]};
        store<2>(y + 2 * p, turned);
    }
}

template <class T>
struct Backward {
    Mat<T> qkv, weights;
    Mat<float> rope, rstd;
    Mat<T> joint[3], dqkv;
    Segment segment;
};

template <class T>
DEVICE void backward(const Backward<T>& a) {
    Head h;
    if (!find(h, a.qkv, a.segment)) return;
    const int d = a.rope.cols, pairs = d / 2, lane = threadIdx.x % 32;
    const int64_t at = (int64_t)h.which * a.joint[0].cols + h.head * d;
    const T *x = a.qkv.row(h.row) + at, *dy = a.joint[h.which].row(h.joint_row) + h.head * d;
    T* dx = a.dqkv.row(h.row) + at;
    float g[PAIRS][2], v[PAIRS][2], sum = 0.0f;
    const float *cosines = a.rope.row(h.token), *sines = cosines + pairs;
    const float rstd = h.which == 2 ? 0.0f : a.rstd.row(h.row)[h.which * a.segment.heads + h.head];
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int p = lane + 32 * i;
        if (p >= pairs) continue;
        load<2>(g[i], dy + 2 * p);
        if (h.which == 2) {
            store<2>(dx + 2 * p, g[i]);
            continue;
        }
        float w[2];
        load<2>(w, a.weights.row(h.which) + 2 * p);
        load<2>(v[i], x + 2 * p);
        const float d0 = g[i][0], d1 = g[i][1];
        g[i][0] = (d0 * cosines[p] + d1 * sines[p]) * w[0];
        g[i][1] = (d1 * cosines[p] - d0 * sines[p]) * w[1];
        v[i][0] *= rstd;
        v[i][1] *= rstd;
        sum += g[i][0] * v[i][0] + g[i][1] * v[i][1];
    }
    if (h.which == 2) return;
    const float mean = warp_sum(sum) / d;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int p = lane + 32 * i;
        if (p >= pairs) continue;
        const float back[2] = {rstd * (g[i][0] - v[i][0] * mean), rstd * (g[i][1] - v[i][1] * mean)};
        store<2>(dx + 2 * p, back);
    }
}

#define KERNELS(T, S)                                                       \
    KERNEL void rms_norm_rope_forward_##S(Forward<T> a) { forward(a); }     \
    KERNEL void rms_norm_rope_backward_##S(Backward<T> a) { backward(a); }
FOR_FLOATS(KERNELS)
