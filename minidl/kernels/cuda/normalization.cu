// Batch normalization, and sums a channel. x lies as (N, C, S).
//
// Where S > 1 a block has one channel, and of its N * S numbers one of `pieces` pieces. Where S is 1 (columns) a block has 32 channels,
// which lie side by side, and of their N numbers one piece: each warp takes a row. What the pieces give is written down and put together
// in the next launch, by every block that needs it, always in the same order. CURVED: whether activations other than ReLU are compiled.

#include "packs.cuh"

constexpr int MOST = 512;                                       // threads of a block, at most

// A thread's way through a piece: `count` steps, each with V numbers at `at`. The rest is how to go on

struct Walk {
    I channel, piece, at, count;
    bool leads;                                                 // whether this thread writes what its block has found about the channel
    I step, inside, ahead, inner, jump;

    __device__ inline void next() {
        if (--count <= 0) return;                               // where it would go then may not even be a number
        at += step;
        inside += ahead;
        if (inside >= inner) {                                  // on to the next image
            inside -= inner;
            at += jump;
        }
    }
};

__device__ inline I least(I a, I b) { return a < b ? a : b; }

template <int V, bool columns> __device__ inline Walk walk(I block, I n, I c, I s, I pieces) {
    Walk w;
    I thread = (I)threadIdx.x, threads = (I)blockDim.x;
    if (columns) {
        I groups = (c + 31) / 32, tall = (n + pieces - 1) / pieces, rows = threads / 32;
        w.channel = block % groups * 32 + thread % 32, w.piece = block / groups;
        I begin = w.piece * tall + thread / 32, end = least((w.piece + 1) * tall, n);
        w.count = w.channel < c && begin < end ? (end - begin + rows - 1) / rows : 0;
        w.at = w.count ? begin * c + w.channel : 0;
        w.leads = thread < 32 && w.channel < c;
        w.step = rows * c, w.inside = w.ahead = w.jump = 0, w.inner = 1;
    } else {
        I inner = s / V, all = n * inner, tall = (all + pieces - 1) / pieces;
        w.channel = block / pieces, w.piece = block % pieces;
        I begin = w.piece * tall + thread, end = least((w.piece + 1) * tall, all);
        w.count = begin < end ? (end - begin + threads - 1) / threads : 0;
        w.inside = begin % inner;
        w.at = w.count ? (begin / inner * c + w.channel) * s + w.inside * V : 0;
        w.leads = thread == 0;
        w.ahead = threads % inner, w.inner = inner, w.jump = (c - 1) * s;
        w.step = w.count > 1 ? threads / inner * c * s + w.ahead * V : 0;           // it might be no number
    }
    return w;
}

// Calls f(at, steps) with the places of LOADS steps, of which the first `steps` are there, so that their loads are on their way together

template <int V> constexpr int LOADS = V == 1 ? 8 : V == 8 ? 2 : 4;

template <int V, typename F> __device__ inline void chunks(Walk w, F f) {
    while (w.count > 0) {
        I at[LOADS<V>];
        int steps = w.count < LOADS<V> ? (int)w.count : LOADS<V>;
        #pragma unroll
        for (int u = 0; u < LOADS<V>; u++) {
            at[u] = w.at;
            if (u < steps) w.next();
        }
        f(at, steps);
    }
}

template <int V> __device__ inline void load_chunk(A (&v)[LOADS<V> * V], const T *x, const I (&at)[LOADS<V>], int steps) {
    #pragma unroll
    for (int u = 0; u < LOADS<V>; u++)
        if (u < steps) {
            if constexpr (V == 1) v[u] = get(x[at[u]]);
            else load(v + u * V, x + at[u]);
        }
}

template <int V> __device__ inline void store_chunk(T *y, const A (&v)[LOADS<V> * V], const I (&at)[LOADS<V>], int steps) {
    #pragma unroll
    for (int u = 0; u < LOADS<V>; u++)
        if (u < steps) {
            if constexpr (V == 1) y[at[u]] = put<T>(v[u]);
            else store(y + at[u], v + u * V);
        }
}

// What pieces give

struct Sums {
    A first, second;

    __device__ inline Sums other(int lane) const {
        return {__shfl_xor_sync(0xffffffffu, first, lane), __shfl_xor_sync(0xffffffffu, second, lane)};
    }

    __device__ inline void add(Sums b) { first += b.first, second += b.second; }
};

struct Moments {                    // how many numbers, their mean, and the sum of the squared distances from it
    A n, mean, squares;

    __device__ inline Moments other(int lane) const {
        return {__shfl_xor_sync(0xffffffffu, n, lane), __shfl_xor_sync(0xffffffffu, mean, lane), __shfl_xor_sync(0xffffffffu, squares, lane)};
    }

    // With d = mean_b - mean_a: mean = mean_a + d n_b / n, squares = squares_a + squares_b + d^2 n_a n_b / n.
    // Welford, 1962; for parts Chan, Golub and LeVeque, 1979
    __device__ inline void add(Moments b) {
        if (b.n == 0) return;
        A d = b.mean - mean, share = b.n / (n + b.n);
        mean = d - d == 0 ? mean + d * share : n == 0 ? b.mean : mean + b.mean;     // an infinity stays one
        squares += b.squares + d * d * n * share;
        n += b.n;
    }
};

template <int count> __device__ inline Moments moments(const A (&v)[count], int there) {    // of the first numbers in registers
    A sum = 0, squares = 0;
    #pragma unroll
    for (int k = 0; k < count; k++) sum += k < there ? v[k] : A(0);
    A mean = sum / there;
    #pragma unroll
    for (int k = 0; k < count; k++) squares += k < there ? (v[k] - mean) * (v[k] - mean) : A(0);
    return {(A)there, mean, squares};
}

// All threads of a channel get the same: the warps' results (columns: those of the same lane) are put together in order

template <bool columns, typename M> __device__ inline M together(M mine) {
    __shared__ M parts[MOST];
    if (!columns)
        for (int lane = 16; lane > 0; lane /= 2) mine.add(mine.other(lane));
    parts[threadIdx.x] = mine;
    __syncthreads();
    int lane = columns ? threadIdx.x % 32 : 0;
    M all = parts[lane];
    for (int warp = 1; warp < blockDim.x / 32; warp++) all.add(parts[warp * 32 + lane]);
    return all;
}

template <bool columns, typename M> __device__ inline M from_pieces(const M *parts, Walk w, I c, I pieces) {
    M mine{};
    if (w.channel < c)
        for (I piece = (columns ? threadIdx.x / 32 : threadIdx.x); piece < pieces; piece += columns ? blockDim.x / 32 : blockDim.x)
            mine.add(parts[piece * c + w.channel]);
    return together<columns>(mine);
}

// For each kernel how it goes through memory: packs where every image's channel begins with one

#define BY_LAYOUT(body, ...)                                                                                                              \
    if (s == 1) body<1, true>(__VA_ARGS__);                                                                                               \
    else if (packed && s % WIDE == 0) body<WIDE, false>(__VA_ARGS__);                                                                     \
    else body<1, false>(__VA_ARGS__)

// Sums a channel: of all, or of a piece, which gives a row of (pieces, C)

template <int V, bool columns> __device__ inline void sums_of(const T *x, I n, I c, I s, I pieces, A *sums) {
    Walk w = walk<V, columns>((I)blockIdx.x, n, c, s, pieces);
    Sums mine{};
    chunks<V>(w, [&](const I (&at)[LOADS<V>], int steps) {
        A v[LOADS<V> * V];
        load_chunk<V>(v, x, at, steps);
        #pragma unroll
        for (int k = 0; k < LOADS<V> * V; k++) mine.first += k < steps * V ? v[k] : A(0);
    });
    Sums all = together<columns>(mine);
    if (w.leads) sums[w.piece * c + w.channel] = all.first;
}

extern "C" __global__ void __launch_bounds__(512) channel_sums(const T *x, I n, I c, I s, I pieces, A *sums) {
    bool packed = aligned(x);
    BY_LAYOUT(sums_of, x, n, c, s, pieces, sums);
}

// Distances are taken from a number of the channel, its first: where the mean is large beside the deviation, as little is lost as is
// where it is not

template <bool columns> __device__ inline A near_mean(const T *x, I channel, I c, I s) {
    A number = channel < c ? get(x[columns ? channel : channel * s]) : A(0);
    return number - number == 0 ? number : A(0);                // an infinity is none
}

// Moments of pieces, about that number: (pieces, C) of three numbers

template <int V, bool columns> __device__ inline void moments_of(const T *x, I n, I c, I s, I pieces, Moments *parts) {
    Walk w = walk<V, columns>((I)blockIdx.x, n, c, s, pieces);
    A zero = near_mean<columns>(x, w.channel, c, s);
    Moments mine{};
    chunks<V>(w, [&](const I (&at)[LOADS<V>], int steps) {
        A v[LOADS<V> * V];
        load_chunk<V>(v, x, at, steps);
        #pragma unroll
        for (int k = 0; k < LOADS<V> * V; k++) v[k] -= zero;
        mine.add(moments(v, steps * V));
    });
    Moments all = together<columns>(mine);
    if (w.leads) parts[w.piece * c + w.channel] = all;
}

extern "C" __global__ void __launch_bounds__(512) batch_moments(const T *x, I n, I c, I s, I pieces, A *parts) {
    bool packed = aligned(x);
    BY_LAYOUT(moments_of, x, n, c, s, pieces, (Moments *)parts);
}

// y = f((x - mean) gamma / sqrt(var + eps) + beta). With parts mean and var are made from them, and written; without they are given.
// Blocks go from the end to the beginning: what the launch before has read last is still in the cache

template <int V, bool columns>
__device__ inline void scaled(const T *x, I n, I c, I s, I pieces, const Moments *parts, const A *gamma, const A *beta, A eps, I kind, T *y,
                              A *means, A *vars) {
    Walk w = walk<V, columns>((I)(gridDim.x - 1 - blockIdx.x), n, c, s, pieces);
    A mean, var;
    if (parts) {
        Moments all = from_pieces<columns>(parts, w, c, pieces);
        mean = near_mean<columns>(x, w.channel, c, s) + all.mean;
        var = all.squares / ((A)n * (A)s) + (mean - mean);                          // NaN about a mean that is not finite
        if (w.leads && w.piece == 0) means[w.channel] = mean, vars[w.channel] = var;
    }
    if (w.channel >= c) return;
    if (!parts) mean = means[w.channel], var = vars[w.channel];
    A scale = gamma[w.channel] / sqrt(var + eps), shift = beta[w.channel];
    chunks<V>(w, [&](const I (&at)[LOADS<V>], int steps) {
        A v[LOADS<V> * V];
        load_chunk<V>(v, x, at, steps);
        #pragma unroll
        for (int k = 0; k < LOADS<V> * V; k++) v[k] = (v[k] - mean) * scale + shift;
        if (CURVED || kind == RELU) activate(v, CURVED ? kind : RELU);
        store_chunk<V>(y, v, at, steps);
    });
}

extern "C" __global__ void __launch_bounds__(512) batch_norm(const T *x, I n, I c, I s, I pieces, const A *parts, const A *gamma,
                                                              const A *beta, A eps, I kind, T *y, A *means, A *vars) {
    bool packed = aligned(x) && aligned(y);
    BY_LAYOUT(scaled, x, n, c, s, pieces, (const Moments *)parts, gamma, beta, eps, kind, y, means, vars);
}

// Of pieces the sums of gy and of gy (x - mean): (pieces, C) of two numbers

template <int V, bool columns>
__device__ inline void products_of(const T *gy, const T *x, I n, I c, I s, I pieces, const A *means, Sums *parts) {
    Walk w = walk<V, columns>((I)blockIdx.x, n, c, s, pieces);
    A mean = w.channel < c ? means[w.channel] : A(0);
    Sums mine{};
    chunks<V>(w, [&](const I (&at)[LOADS<V>], int steps) {
        A g[LOADS<V> * V], v[LOADS<V> * V];
        load_chunk<V>(g, gy, at, steps);
        load_chunk<V>(v, x, at, steps);
        #pragma unroll
        for (int k = 0; k < LOADS<V> * V; k++) {
            mine.first += k < steps * V ? g[k] : A(0);
            mine.second += k < steps * V ? g[k] * (v[k] - mean) : A(0);
        }
    });
    Sums all = together<columns>(mine);
    if (w.leads) parts[w.piece * c + w.channel] = all;
}

extern "C" __global__ void __launch_bounds__(512) batch_products(const T *gy, const T *x, I n, I c, I s, I pieces, const A *means,
                                                                  A *parts) {
    bool packed = aligned(gy) && aligned(x);
    BY_LAYOUT(products_of, gy, x, n, c, s, pieces, means, (Sums *)parts);
}

// gx = a number a channel times gy, plus one times x - mean, plus one: see reference_layers.batch_norm_gradient. gmeans, gvars: or null

template <int V, bool columns>
__device__ inline void gradient_of(const T *gy, const T *x, I n, I c, I s, I pieces, const Sums *parts, const A *gamma, const A *means,
                                   const A *vars, A eps, const A *gmeans, const A *gvars, T *gx, A *ggamma, A *gbeta) {
    Walk w = walk<V, columns>((I)(gridDim.x - 1 - blockIdx.x), n, c, s, pieces);
    Sums all = from_pieces<columns>(parts, w, c, pieces);
    if (w.channel >= c) return;
    A mean = means[w.channel], r = 1 / sqrt(vars[w.channel] + eps), scale = gamma[w.channel] * r, share = 1 / ((A)n * (A)s);
    A along = all.second * r;
    if (w.leads && w.piece == 0) ggamma[w.channel] = along, gbeta[w.channel] = all.first;
    A slope = -scale * r * along * share, shift = -scale * all.first * share;
    if (gmeans) shift += gmeans[w.channel] * share;
    if (gvars) slope += gvars[w.channel] * 2 * share;
    chunks<V>(w, [&](const I (&at)[LOADS<V>], int steps) {
        A g[LOADS<V> * V], v[LOADS<V> * V];
        load_chunk<V>(g, gy, at, steps);
        load_chunk<V>(v, x, at, steps);
        #pragma unroll
        for (int k = 0; k < LOADS<V> * V; k++) g[k] = g[k] * scale + (v[k] - mean) * slope + shift;
        store_chunk<V>(gx, g, at, steps);
    });
}

extern "C" __global__ void __launch_bounds__(512) batch_norm_gradient(const T *gy, const T *x, I n, I c, I s, I pieces, const A *parts,
                                                                       const A *gamma, const A *means, const A *vars, A eps,
                                                                       const A *gmeans, const A *gvars, T *gx, A *ggamma, A *gbeta) {
    bool packed = aligned(gy) && aligned(x) && aligned(gx);
    BY_LAYOUT(gradient_of, gy, x, n, c, s, pieces, (const Sums *)parts, gamma, means, vars, eps, gmeans, gvars, gx, ggamma, gbeta);
}
