// Causal attention with grouped queries, forward. A block takes 16 queries of one head of one sequence, each
// of its warps four of them, and goes over the keys before their end in tiles of 32. A lane computes the
// scores of its key, then its share of the channels of the result; what earlier tiles gave is scaled down as
// larger scores appear.

constexpr int WARPS = 4, OWN = 4, QUERIES = WARPS * OWN, KEYS = 32;
constexpr int MOST_D = 128, SHARES = MOST_D / 32;
// Score of a key that is not seen; its exponential is 0 next to any other.
constexpr float UNSEEN = -3e38f;

template <class T>
struct Forward {
    Mat<T> q, k, v, o;
    const int* starts;  // first row of each sequence, and one past the last
    int group, d;       // query heads of a key head; channels of a head
    float scale;
};

// Rows `from..from + KEYS` of one head, zeros from row `end` on, widened, d + 1 apart: lanes find their rows
// in different banks.
template <int V, class T>
DEVICE void take(float* to, const Mat<T>& m, int from, int end, int col, int d) {
    for (int i = threadIdx.x * V; i < KEYS * d; i += WARPS * 32 * V) {
        const int row = i / d, c = i % d;
        float x[V] = {};
        if (from + row < end) load<V>(x, m.row(from + row) + col + c);
#pragma unroll
        for (int k = 0; k < V; k++) to[row * (d + 1) + c + k] = x[k];
    }
}

template <int V, class T>
DEVICE void forward(const Forward<T>& a) {
    __shared__ Pack<float, OWN> queries[WARPS][MOST_D], weights[WARPS][KEYS];
    __shared__ float tile[KEYS * (MOST_D + 1)];
    const int start = a.starts[blockIdx.z], end = a.starts[blockIdx.z + 1], d = a.d, head = blockIdx.y;
    // The last queries see most keys: they begin first.
    const int block = start + (gridDim.x - 1 - blockIdx.x) * QUERIES;
    if (block >= end) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = block + warp * OWN;
    for (int i = lane; i < OWN * d; i += 32) {
        const int own = i / d, c = i % d;
        const bool there = first + own < end;
        queries[warp][c].v[own] = there ? widen(a.q.row(first + own)[head * d + c]) * a.scale : 0.0f;
    }
    float most[OWN], total[OWN], out[SHARES][OWN] = {};
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        most[own] = UNSEEN;
        total[own] = 0.0f;
    }
    const int col = head / a.group * d, last = block + QUERIES < end ? block + QUERIES : end;
    for (int from = start; from < last; from += KEYS) {
        __syncthreads();
        take<V>(tile, a.k, from, end, col, d);
        __syncthreads();
        float s[OWN] = {};
        for (int c = 0; c < d; c++) {
            const float k = tile[lane * (d + 1) + c];
            const Pack<float, OWN> q = queries[warp][c];
#pragma unroll
            for (int own = 0; own < OWN; own++) s[own] += q.v[own] * k;
        }
        Pack<float, OWN> p;
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            // Every query sees the first key of its sequence, so that `most` is a score after the first tile.
            if (from + lane > first + own) s[own] = UNSEEN;
            const float now = fmaxf(most[own], warp_max(s[own]));
            const float down = __expf(most[own] - now);
            p.v[own] = __expf(s[own] - now);
            total[own] = total[own] * down + warp_sum(p.v[own]);
            most[own] = now;
#pragma unroll
            for (int i = 0; i < SHARES; i++) out[i][own] *= down;
        }
        weights[warp][lane] = p;
        __syncthreads();
        take<V>(tile, a.v, from, end, col, d);
        __syncthreads();
        for (int key = 0; key < KEYS; key++) {
            const Pack<float, OWN> p = weights[warp][key];
#pragma unroll
            for (int i = 0; i < SHARES; i++) {
                if (lane + 32 * i >= d) break;
                const float v = tile[key * (d + 1) + lane + 32 * i];
#pragma unroll
                for (int own = 0; own < OWN; own++) out[i][own] += p.v[own] * v;
            }
        }
    }
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        if (first + own >= end) break;
        T* o = a.o.row(first + own) + head * d;
#pragma unroll
        for (int i = 0; i < SHARES; i++)
            if (lane + 32 * i < d) narrow(o[lane + 32 * i], out[i][own] / total[own]);
    }
}

#define KERNELS(T, S)                                                                 \
    KERNEL void causal_attention_##S(Forward<T> a) { forward<1>(a); }                 \
    KERNEL void causal_attention_vec_##S(Forward<T> a) { forward<Wide<T>::V>(a); }
FOR_FLOATS(KERNELS)
