// Adafactor on one matrix, in six passes; what they share are numbers in the GPU's memory.

// Numbers of one step.
struct Shared {
    float mean;   // of the second moment by row
    float lr;     // learning rate, scaled by the parameters if it is to be
    float scale;  // what the update is multiplied by
};

// 1: second moment by row and, if asked, the squares of the parameters. A block takes a row.
struct Rows {
    Mat<float> parameter, gradient, clip, rows;
    float* squares;  // of each row's parameters, or 0
    float beta2, rest2, eps;
};

KERNEL void adafactor_rows(Rows a) {
    const int64_t row = blockIdx.x;
    const float factor = a.clip.data[1];
    const float *g = a.gradient.row(row), *p = a.parameter.row(row);
    float sums[2] = {};
    for (int col = threadIdx.x; col < a.gradient.cols; col += blockDim.x) {
        const float clipped = g[col] * factor;
        sums[0] += clipped * clipped + a.eps;
        if (a.squares) sums[1] += p[col] * p[col];
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    a.rows.data[row] = a.beta2 * a.rows.data[row] + a.rest2 * (sums[0] / a.gradient.cols);
    if (a.squares) a.squares[row] = sums[1];
}

// 2: second moment by column. A block takes `width` columns, a power of two; its threads share the rows.
struct Columns {
    Mat<float> gradient, clip, columns;
    int width;
    float beta2, rest2, eps;
};

KERNEL void adafactor_columns(Columns a) {
    __shared__ float parts[1024];
    const int col = blockIdx.x * a.width + threadIdx.x % a.width, share = threadIdx.x / a.width;
    const int shares = blockDim.x / a.width;
    const float factor = a.clip.data[1];
    float sum = 0.0f;
    if (col < a.gradient.cols)
        for (int row = share; row < a.gradient.rows; row += shares) {
            const float clipped = a.gradient.row(row)[col] * factor;
            sum += clipped * clipped + a.eps;
        }
    parts[threadIdx.x] = sum;
    for (int half = shares / 2; half > 0; half /= 2) {
        __syncthreads();
        if (share < half) parts[threadIdx.x] += parts[threadIdx.x + half * a.width];
    }
    if (share > 0 || col >= a.gradient.cols) return;
    a.columns.data[col] = a.beta2 * a.columns.data[col] + a.rest2 * (parts[threadIdx.x] / a.gradient.rows);
}

// 3: what all rows share. One block.
struct Means {
    Mat<float> rows;
    const float* squares;  // as in 1
    Shared* shared;
    float lr, floor, per_value;  // per_value: 1 / (m * n)
};

KERNEL void adafactor_means(Means a) {
    float sums[2] = {};
    for (int row = threadIdx.x; row < a.rows.cols; row += blockDim.x) {
        sums[0] += a.rows.data[row];
        if (a.squares) sums[1] += a.squares[row];
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    a.shared->mean = sums[0] / a.rows.cols;
    a.shared->lr = a.squares ? a.lr * fmaxf(sqrtf(sums[1] * a.per_value), a.floor) : a.lr;
}

DEVICE float of_row(float factor, float mean, float moment) { return factor * sqrtf(mean / moment); }
DEVICE float of_column(float moment) { return 1.0f / sqrtf(moment); }

// 4: squares of the updates of each row. A block takes a row.
struct Sizes {
    Mat<float> gradient, clip, rows, columns;
    const Shared* shared;
    float* sizes;
};

KERNEL void adafactor_sizes(Sizes a) {
    const int64_t row = blockIdx.x;
    const float *g = a.gradient.row(row), own = of_row(a.clip.data[1], a.shared->mean, a.rows.data[row]);
    float sum[1] = {};
    for (int col = threadIdx.x; col < a.gradient.cols; col += blockDim.x) {
        const float u = g[col] * own * of_column(a.columns.data[col]);
        sum[0] += u * u;
    }
    block_sum(sum);
    if (threadIdx.x == 0) a.sizes[row] = sum[0];
}

// 5: what the update is multiplied by. One block.
struct Scale {
    const float* sizes;
    Shared* shared;
    int rows;
    float threshold, per_value;
};

KERNEL void adafactor_scale(Scale a) {
    float sum[1] = {};
    for (int row = threadIdx.x; row < a.rows; row += blockDim.x) sum[0] += a.sizes[row];
    block_sum(sum);
    if (threadIdx.x != 0) return;
    a.shared->scale = a.shared->lr / fmaxf(sqrtf(sum[0] * a.per_value) / a.threshold, 1.0f);
}

// 6: the update, V neighbouring values a thread.
struct Update {
    Mat<float> parameter, gradient, clip, rows, columns, first;  // first: may be none
    const Shared* shared;
    float beta1, rest1, weight_decay;
};

template <int V>
DEVICE void update(const Update& a) {
    int64_t row, col;
    if (!element<V>(row, col, a.parameter)) return;
    const Shared shared = *a.shared;
    const float own = shared.scale * of_row(a.clip.data[1], shared.mean, a.rows.data[row]);
    const float decay = 1.0f - shared.lr * a.weight_decay;
    float p[V], u[V], c[V];
    load<V>(p, a.parameter.row(row) + col);
    load<V>(u, a.gradient.row(row) + col);
    load<V>(c, a.columns.data + col);
#pragma unroll
    for (int k = 0; k < V; k++) u[k] *= own * of_column(c[k]);
    if (a.first.data) {
        float m[V];
        load<V>(m, a.first.row(row) + col);
#pragma unroll
        for (int k = 0; k < V; k++) u[k] = a.beta1 * m[k] + a.rest1 * u[k];
        store<V>(a.first.row(row) + col, u);
    }
#pragma unroll
    for (int k = 0; k < V; k++) p[k] = p[k] * decay - u[k];
    store<V>(a.parameter.row(row) + col, p);
}

KERNEL void adafactor_update(Update a) { update<1>(a); }
KERNEL void adafactor_update_vec(Update a) { update<4>(a); }
