// The straight path from data to noise. Data, noise and target are f32; the noisy latents have the model's type.

constexpr int SAMPLES = 64;

template <class T>
struct Forward {
    Mat<float> x0, noise;
    Mat<T> noisy;
    Mat<float> target;
    int tokens;
    float sigmas[SAMPLES];
};

template <class T>
DEVICE void forward(const Forward<T>& a) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.noisy.rows * a.noisy.cols) return;
    const int64_t row = i / a.noisy.cols, col = i % a.noisy.cols;
    const float sigma = a.sigmas[row / a.tokens], x = a.x0.row(row)[col], e = a.noise.row(row)[col];
    narrow(a.noisy.row(row)[col], (1.0f - sigma) * x + sigma * e);
    a.target.row(row)[col] = e - x;
}

#define KERNELS(T, S) \
    KERNEL void flow_##S(Forward<T> a) { forward(a); }
FOR_FLOATS(KERNELS)
