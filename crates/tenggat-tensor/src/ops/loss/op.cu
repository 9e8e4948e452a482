// Losses. `BLOCKS` blocks share a sample's elements and leave partial sums; a second kernel adds them up.

constexpr int SAMPLES = 64;
constexpr int BLOCKS = 64;

template <class T>
struct Backward {
    Mat<T> pred;
    Mat<float> target, mask;  // no mask: null
    Mat<T> dpred;
    float* sums;  // [samples, BLOCKS]
    int tokens, kind;  // kind: 0 squared, 1 absolute, 2 pseudo-Huber
    float c;
    float factors[SAMPLES];
};

template <class T>
DEVICE void backward(const Backward<T>& a) {
    const int sample = blockIdx.y;
    const int64_t n = (int64_t)a.tokens * a.pred.cols;
    const float factor = a.factors[sample];
    float sum[1] = {0.0f};
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t row = (int64_t)sample * a.tokens + i / a.pred.cols, col = i % a.pred.cols;
        const float e = widen(a.pred.row(row)[col]) - a.target.row(row)[col];
        const float m = a.mask.data ? a.mask.row(row)[col] : 1.0f;
        float loss, slope;
        if (a.kind == 0) {
            loss = e * e;
            slope = 2.0f * e;
        } else if (a.kind == 1) {
            loss = fabsf(e);
            slope = (e > 0.0f) - (e < 0.0f);
        } else {
            const float root = sqrtf(e * e + a.c * a.c);
            loss = 2.0f * a.c * (root - a.c);
            slope = 2.0f * a.c * e / root;
        }
        sum[0] += m * loss;
        narrow(a.dpred.row(row)[col], factor * m * slope);
    }
    block_sum<1>(sum);
    if (threadIdx.x == 0) a.sums[sample * gridDim.x + blockIdx.x] = sum[0];
}

// One warp adds up a sample's parts.
struct Finish {
    const float* sums;
    Mat<float> loss;
    int parts;
    float inverse;
};

KERNEL void loss_finish(Finish a) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < a.parts; i += 32) sum += a.sums[blockIdx.x * a.parts + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) a.loss.row(blockIdx.x)[0] = sum * a.inverse;
}

#define KERNELS(T, S) \
    KERNEL void loss_##S(Backward<T> a) { backward(a); }
FOR_FLOATS(KERNELS)
