// What all CUDA files share: numbers in memory and in registers, sums over a warp and over a block.
//
// Macros that source.py gives: T, the type in which numbers lie in memory; A, in which they are computed: float, or double for double;
// I, which counts places: int, or long long for large arrays. No header of CUDA's is needed, so that a bare machine can compile it.

#include "ptx.cuh"

struct half_t { unsigned short bits; };             // IEEE 754 binary16
struct bfloat_t { unsigned short bits; };           // the upper half of a float

__device__ inline float get(float x) { return x; }
__device__ inline double get(double x) { return x; }
__device__ inline float get(half_t x) { return half_to_float(x.bits); }
__device__ inline float get(bfloat_t x) { return __uint_as_float((unsigned)x.bits << 16); }

template <typename To> __device__ inline To put(A x);       // rounded to the nearest, ties to even

template <> __device__ inline float put<float>(A x) { return (float)x; }
template <> __device__ inline double put<double>(A x) { return (double)x; }

template <> __device__ inline half_t put<half_t>(A x) { return {float_to_half((float)x)}; }

template <> __device__ inline bfloat_t put<bfloat_t>(A x) {
    unsigned bits = __float_as_uint((float)x);
    bfloat_t y;
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        y.bits = (unsigned short)(bits >> 16 | 0x40u);      // a NaN stays one
    else
        y.bits = (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return y;
}

// Sums over a warp and over a block: each of its threads gets the result

template <typename V> __device__ inline V warp_sum(V v) {
    for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
    return v;
}

template <typename V> __device__ inline V block_sum(V v) {      // whole warps; every thread of the block calls it
    __shared__ V parts[32];
    v = warp_sum(v);
    __syncthreads();                                            // the last sum has been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < (blockDim.x + 31) / 32 ? parts[threadIdx.x % 32] : V(0);
    return warp_sum(v);
}
