// Layer normalization: x is `rows` rows, each normalized on its own. A row that fits stays in registers between its mean, the mean of the
// squared distances from it, and the result.

#include "rows.cuh"

template <int V, bool block>
__device__ inline void normalized(const T *x, I rows, I width, const A *gamma, const A *beta, A eps, T *y, A *means, A *vars) {
    Row<V, block> its(width);
    if (its.row >= rows) return;                                // a whole warp
    x += its.row * width, y += its.row * width;
    A v[HELD], sum = 0, squares = 0;
    for (I i = 0; i < its.chunks; i++) {
        its.take(v, x, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) sum += v[k];
    }
    A mean = its.sum(sum) / (A)width;
    for (I i = 0; i < its.chunks; i++) {
        if (its.chunks > 1) its.take(v, x, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) squares += its.has(i, k) ? (v[k] - mean) * (v[k] - mean) : A(0);
    }
    A var = its.sum(squares) / (A)width, r = 1 / sqrt(var + eps);
    for (I i = 0; i < its.chunks; i++) {
        A scale[HELD], shift[HELD];
        if (its.chunks > 1) its.take(v, x, i);
        if (gamma) its.take(scale, gamma, i);
        if (beta) its.take(shift, beta, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) v[k] = (v[k] - mean) * r * (gamma ? scale[k] : A(1)) + (beta ? shift[k] : A(0));
        its.give(y, v, i);
    }
    if (its.lane == 0) means[its.row] = mean, vars[its.row] = var;
}

extern "C" __global__ void __launch_bounds__(512) layer_norm(const T *x, I rows, I width, I by_block, const A *gamma, const A *beta, A eps,
                                                             T *y, A *means, A *vars) {
    bool packed = width % WIDE == 0 && aligned(x) && aligned(y) && aligned(gamma) && aligned(beta);
    BY_ROW(normalized, by_block, packed, x, rows, width, gamma, beta, eps, y, means, vars)
}

// gx: see reference_layers.layer_norm_gradient. gmeans, gvars: or null

template <int V, bool block>
__device__ inline void gradient(const T *gy, const T *x, I rows, I width, const A *gamma, const A *means, const A *vars, A eps,
                                const A *gmeans, const A *gvars, T *gx) {
    Row<V, block> its(width);
    if (its.row >= rows) return;
    gy += its.row * width, x += its.row * width, gx += its.row * width;
    A mean = means[its.row], r = 1 / sqrt(vars[its.row] + eps), sum = 0, along = 0;
    A gu[HELD], u[HELD];
    auto look = [&](I i) {
        A scale[HELD];
        its.take(gu, gy, i);
        its.take(u, x, i);
        if (gamma) its.take(scale, gamma, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) {
            gu[k] *= gamma ? scale[k] : A(1);
            u[k] = its.has(i, k) ? (u[k] - mean) * r : A(0);
        }
    };
    for (I i = 0; i < its.chunks; i++) {
        look(i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) sum += gu[k], along += gu[k] * u[k];
    }
    sum = its.sum(sum), along = its.sum(along);
    A shift = -r * sum / (A)width, slope = -r * along / (A)width;
    if (gmeans) shift += gmeans[its.row] / (A)width;
    if (gvars) slope += gvars[its.row] / r * 2 / (A)width;      // x - mean is u / r
    for (I i = 0; i < its.chunks; i++) {
        if (its.chunks > 1) look(i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) gu[k] = gu[k] * r + u[k] * slope + shift;
        its.give(gx, gu, i);
    }
}

extern "C" __global__ void __launch_bounds__(512) layer_norm_gradient(const T *gy, const T *x, I rows, I width, I by_block, const A *gamma,
                                                                      const A *means, const A *vars, A eps, const A *gmeans,
                                                                      const A *gvars, T *gx) {
    bool packed = width % WIDE == 0 && aligned(gy) && aligned(x) && aligned(gx) && aligned(gamma);
    BY_ROW(gradient, by_block, packed, gy, x, rows, width, gamma, means, vars, eps, gmeans, gvars, gx)
}

// Sums over rows of gy u and of gy: a block has 32 columns and one piece of the rows, each warp a row. Gives (pieces, 2, width)

extern "C" __global__ void __launch_bounds__(512) parameter_gradients(const T *gy, const T *x, I rows, I width, I pieces, const A *means,
                                                                      const A *vars, A eps, A *sums) {
    __shared__ A parts[2][512];
    I groups = (width + 31) / 32, piece = (I)blockIdx.x / groups, column = (I)blockIdx.x % groups * 32 + (I)(threadIdx.x % 32);
    I tall = (rows + pieces - 1) / pieces, end = (piece + 1) * tall < rows ? (piece + 1) * tall : rows;
    A ggamma = 0, gbeta = 0;
    if (column < width) {
        #pragma unroll 4
        for (I row = piece * tall + (I)(threadIdx.x / 32); row < end; row += (I)(blockDim.x / 32)) {
            A g = get(gy[row * width + column]), u = (get(x[row * width + column]) - means[row]) * rsqrt(vars[row] + eps);
            ggamma += g * u, gbeta += g;
        }
    }
    parts[0][threadIdx.x] = ggamma, parts[1][threadIdx.x] = gbeta;
    __syncthreads();
    if (threadIdx.x < 32 && column < width) {
        for (int other = threadIdx.x + 32; other < blockDim.x; other += 32) ggamma += parts[0][other], gbeta += parts[1][other];
        sums[(piece * 2) * width + column] = ggamma;
        sums[(piece * 2 + 1) * width + column] = gbeta;
    }
}
