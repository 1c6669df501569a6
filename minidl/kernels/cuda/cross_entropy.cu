// Softmax cross-entropy: x is `rows` rows of logits, and labels are class ids of type L. See reference_layers.softmax_cross_entropy.

#include "rows.cuh"

__device__ inline A larger(A a, A b) { return a < b || b != b ? b : a; }            // a NaN wins

template <bool block> __device__ inline A row_largest(A v) {
    for (int lane = 16; lane > 0; lane /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, lane));
    if constexpr (block) {
        __shared__ A parts[32];
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        for (int warp = 0; warp < blockDim.x / 32; warp++) v = larger(v, parts[warp]);
    }
    return v;
}

// With gx null the losses, else the gradient by x; each: the gradient by every loss, `stride` numbers apart: 1, or 0 for one that is
// repeated. A label that is no class gives NaN

template <int V, bool block>
__device__ inline void by_row(const T *x, I rows, I classes, const L *labels, A smoothing, A *losses, const A *each, I stride, T *gx) {
    Row<V, block> its(classes);
    if (its.row >= rows) return;                                // a whole warp
    x += its.row * classes;
    A v[HELD], top = -infinity(), powers = 0, sum = 0;
    for (I i = 0; i < its.chunks; i++) {
        its.take(v, x, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++) top = its.has(i, k) ? larger(top, v[k]) : top;
    }
    top = row_largest<block>(top);
    for (I i = 0; i < its.chunks; i++) {
        if (its.chunks > 1) its.take(v, x, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++)
            if (its.has(i, k)) sum += v[k] - top, powers += exp(v[k] - top);
    }
    powers = its.sum(powers);
    long long label = labels[its.row];
    bool known = label >= 0 && label < classes;
    if (!gx) {
        sum = its.sum(sum);
        if (its.lane > 0) return;
        A loss = known ? log(powers) : infinity() - infinity();
        if (smoothing != 1 && known) loss -= (get(x[label]) - top) * (1 - smoothing);
        losses[its.row] = smoothing == 0 ? loss : loss - sum * (smoothing / (A)classes);
        return;
    }
    A share = 1 / powers, less = smoothing / (A)classes, g = known ? each[its.row * stride] : infinity() - infinity();
    for (I i = 0; i < its.chunks; i++) {
        if (its.chunks > 1) its.take(v, x, i);
        #pragma unroll
        for (int k = 0; k < HELD; k++)
            v[k] = (exp(v[k] - top) * share - less - (its.place(i, k) == label ? 1 - smoothing : A(0))) * g;
        its.give(gx + its.row * classes, v, i);
    }
}

extern "C" __global__ void __launch_bounds__(512) softmax_cross_entropy(const T *x, I rows, I classes, I by_block, const L *labels,
                                                                        A smoothing, A *losses, const A *each, I stride, T *gx) {
    bool packed = classes % WIDE == 0 && aligned(x) && aligned(gx);
    BY_ROW(by_row, by_block, packed, x, rows, classes, labels, smoothing, losses, each, stride, gx)
}
