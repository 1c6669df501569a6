// Rows of a matrix, each taken by a warp or, if `block`, by a whole block, as rows.py says. A thread holds HELD numbers of its row at a
// time, in packs of V; rows with more are read again for every look at them, from the cache.

#include "packs.cuh"

constexpr int HELD = 8;

template <int V, bool block> struct Row {
    I row, width, chunks;
    int lane, lanes;

    __device__ inline Row(I width) : width(width) {
        lanes = block ? blockDim.x : 32, lane = threadIdx.x % lanes;
        row = block ? (I)blockIdx.x : (I)blockIdx.x * (I)(blockDim.x / 32) + (I)(threadIdx.x / 32);
        chunks = (width + HELD * lanes - 1) / (HELD * lanes);
    }

    __device__ inline I place(I chunk, int k) const { return ((chunk * (HELD / V) + k / V) * lanes + lane) * V + k % V; }

    __device__ inline bool has(I chunk, int k) const { return place(chunk, k) < width; }

    template <typename N> __device__ inline void take(A (&v)[HELD], const N *x, I chunk) const {     // x: the row; zeros beyond its end
        #pragma unroll
        for (int k = 0; k < HELD; k += V) {
            if (has(chunk, k)) {
                if constexpr (V == 1) v[k] = get(x[place(chunk, k)]);
                else load(v + k, x + place(chunk, k));
            } else {
                #pragma unroll
                for (int j = 0; j < V; j++) v[k + j] = 0;
            }
        }
    }

    __device__ inline void give(T *y, const A (&v)[HELD], I chunk) const {
        #pragma unroll
        for (int k = 0; k < HELD; k += V)
            if (has(chunk, k)) {
                if constexpr (V == 1) y[place(chunk, k)] = put<T>(v[k]);
                else store(y + place(chunk, k), v + k);
            }
    }

    __device__ inline A sum(A v) const {                        // over the row, for each of its threads
        if constexpr (block) return block_sum(v);
        else return warp_sum(v);
    }
};

// Calls body<V, block>, after a look at how the rows lie and how many threads each has

#define BY_ROW(body, by_block, packed, ...)                                                                                                \
    if (by_block) {                                                                                                                       \
        if (packed) body<WIDE, true>(__VA_ARGS__);                                                                                        \
        else body<1, true>(__VA_ARGS__);                                                                                                  \
    } else {                                                                                                                              \
        if (packed) body<WIDE, false>(__VA_ARGS__);                                                                                       \
        else body<1, false>(__VA_ARGS__);                                                                                                 \
    }
