// Head norm and rotary embedding. A block takes a token. Neighbouring threads, a power of two of them, take a head each of
// q, of k and of v, then the next; a thread has the same channels of every head, and so reads their angles once.

struct Segment {
    int tokens, joint_tokens, at, heads;
    int lane_bits;   // of the number of threads that a head has
    float inverse;   // of a head's channels
};

// The heads that a block takes at once.
struct Share {
    int64_t row, joint_row;
    int lane, first, step;
};

DEVICE Share share_of(const Segment& s) {
    const int64_t token = blockIdx.x, sample = blockIdx.y;
    const int lane = threadIdx.x & ((1 << s.lane_bits) - 1);
    const int first = threadIdx.x >> s.lane_bits, step = blockDim.x >> s.lane_bits;
    return {sample * s.tokens + token, sample * s.joint_tokens + s.at + token, lane, first, step};
}

// Sum over the threads of a head, in all of them.
DEVICE float head_sum(float x, const Segment& s) {
#pragma unroll
    for (int bit = 0; bit < 5; bit++)
        if (bit < s.lane_bits) x += __shfl_xor_sync(0xffffffffu, x, 1 << bit);
    return x;
}

// What a thread has of a head of d channels: PIECES packs of V, of which some may not be there. Calls `f(piece, channel)`.
template <int V, int PIECES, class F>
DEVICE void each_piece(const Share& share, const Segment& s, int d, F f) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int channel = (share.lane + (i << s.lane_bits)) * V;
        if (channel < d) f(i, channel);
    }
}

// Cosines and sines of a thread's pairs, and the weights of its channels of q and of k.
template <int V, int PIECES>
struct Tables {
    float cosines[PIECES][V / 2], sines[PIECES][V / 2], weights[2][PIECES][V];

    template <class T>
    DEVICE Tables(const Share& share, const Segment& s, const Mat<float>& rope, const Mat<T>& norms) {
        const int d = rope.cols;
        const float* angles = rope.row(blockIdx.x);
        each_piece<V, PIECES>(share, s, d, [&](int i, int channel) {
            load<V / 2>(cosines[i], angles + channel / 2);
            load<V / 2>(sines[i], angles + d / 2 + channel / 2);
            load<V>(weights[0][i], norms.row(0) + channel);
            load<V>(weights[1][i], norms.row(1) + channel);
        });
    }
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

template <int V, int PIECES, class T>
DEVICE void forward(const Forward<T>& a) {
    const Segment& s = a.segment;
    const Share share = share_of(s);
    const int d = a.rope.cols, inner = a.joint[0].cols;
    const Tables<V, PIECES> tables(share, s, a.rope, a.weights);
    for (int first = 0; first < s.heads; first += share.step) {
        const int head = first + share.first;
        const bool there = head < s.heads;
        const T* x = a.qkv.row(share.row) + head * d;
        float v[2][PIECES][V], sums[2] = {0.0f, 0.0f};
        Pack<T, V> values[PIECES];
        if (there)
            each_piece<V, PIECES>(share, s, d, [&](int i, int channel) {
                values[i] = *(const Pack<T, V>*)(x + 2 * inner + channel);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    load<V>(v[which][i], x + which * inner + channel);
#pragma unroll
                    for (int k = 0; k < V; k++) sums[which] += v[which][i][k] * v[which][i][k];
                }
            });
#pragma unroll
        for (int which = 0; which < 2; which++) sums[which] = head_sum(sums[which], s);
        if (!there) continue;
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const float rstd = rsqrtf(sums[which] * s.inverse + a.eps);
            if (share.lane == 0) a.rstd.row(share.row)[which * s.heads + head] = rstd;
            T* y = a.joint[which].row(share.joint_row) + head * d;
            each_piece<V, PIECES>(share, s, d, [&](int i, int channel) {
                float turned[V];
#pragma unroll
                for (int k = 0; k < V; k += 2) {
                    const float n0 = v[which][i][k] * rstd * tables.weights[which][i][k];
                    const float n1 = v[which][i][k + 1] * rstd * tables.weights[which][i][k + 1];
                    const float cosine = tables.cosines[i][k / 2], sine = tables.sines[i][k / 2];
                    turned[k] = n0 * cosine - n1 * sine;
                    turned[k + 1] = n0 * sine + n1 * cosine;
                }
                store<V>(y + channel, turned);
            });
        }
        T* y = a.joint[2].row(share.joint_row) + head * d;
        each_piece<V, PIECES>(share, s, d, [&](int i, int channel) { *(Pack<T, V>*)(y + channel) = values[i]; });
    }
}

template <class T>
struct Backward {
    Mat<T> qkv, weights;
    Mat<float> rope, rstd;
    Mat<T> joint[3], dqkv;
    Segment segment;
};

template <int V, int PIECES, class T>
DEVICE void backward(const Backward<T>& a) {
    const Segment& s = a.segment;
    const Share share = share_of(s);
    const int d = a.rope.cols, inner = a.joint[0].cols;
    const Tables<V, PIECES> tables(share, s, a.rope, a.weights);
    for (int first = 0; first < s.heads; first += share.step) {
        const int head = first + share.first;
        const bool there = head < s.heads;
        const T* x = a.qkv.row(share.row) + head * d;
        T* dx = a.dqkv.row(share.row) + head * d;
        // The normed input, and the gradient turned back and weighted.
        float n[2][PIECES][V], g[2][PIECES][V], rstd[2], sums[2] = {0.0f, 0.0f};
        Pack<T, V> values[PIECES];
        if (there) {
#pragma unroll
            for (int which = 0; which < 2; which++) rstd[which] = a.rstd.row(share.row)[which * s.heads + head];
            each_piece<V, PIECES>(share, s, d, [&](int i, int channel) {
                values[i] = *(const Pack<T, V>*)(a.joint[2].row(share.joint_row) + head * d + channel);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    load<V>(n[which][i], x + which * inner + channel);
                    load<V>(g[which][i], a.joint[which].row(share.joint_row) + head * d + channel);
#pragma unroll
                    for (int k = 0; k < V; k += 2) {
                        const float d0 = g[which][i][k], d1 = g[which][i][k + 1];
                        const float cosine = tables.cosines[i][k / 2], sine = tables.sines[i][k / 2];
                        g[which][i][k] = (d0 * cosine + d1 * sine) * tables.weights[which][i][k];
                        g[which][i][k + 1] = (d1 * cosine - d0 * sine) * tables.weights[which][i][k + 1];
                    }
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        n[which][i][k] *= rstd[which];
                        sums[which] += g[which][i][k] * n[which][i][k];
                    }
                }
            });
        }
#pragma unroll
        for (int which = 0; which < 2; which++) sums[which] = head_sum(sums[which], s) * s.inverse;
        if (!there) continue;
        each_piece<V, PIECES>(share, s, d, [&](int i, int channel) {
#pragma unroll
            for (int which = 0; which < 2; which++) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    g[which][i][k] = rstd[which] * (g[which][i][k] - n[which][i][k] * sums[which]);
                store<V>(dx + which * inner + channel, g[which][i]);
            }
            *(Pack<T, V>*)(dx + 2 * inner + channel) = values[i];
        });
    }
}

// Whole packs if they are a power of two, at most 32; else pairs, of which 32 threads have up to 4 each.
#define KERNELS(T, S)                                                                                                \
    KERNEL void __launch_bounds__(512) rms_norm_rope_forward_##S(Forward<T> a) { forward<2, 4>(a); }                 \
    KERNEL void __launch_bounds__(512) rms_norm_rope_forward_vec_##S(Forward<T> a) { forward<Wide<T>::V, 1>(a); }   \
    KERNEL void __launch_bounds__(512) rms_norm_rope_backward_##S(Backward<T> a) { backward<2, 4>(a); }              \
    KERNEL void __launch_bounds__(512) rms_norm_rope_backward_vec_##S(Backward<T> a) { backward<Wide<T>::V, 1>(a); }
FOR_FLOATS(KERNELS)
