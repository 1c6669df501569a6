// What is done to each number on its own. One pass over memory: a thread loads PACKS packs of 16 bytes before it writes the first, and
// neighbouring threads have neighbouring packs.

#include "packs.cuh"

constexpr int PACKS = sizeof(T) == 2 ? 2 : 4, MINE = PACKS * WIDE;      // MINE: numbers of a thread, as in elementwise.py

__device__ inline I place(int pack) { return (((I)blockIdx.x * PACKS + pack) * (I)blockDim.x + (I)threadIdx.x) * WIDE; }

template <typename V> __device__ inline void take(A (&v)[MINE], const V *x, I size) {
    bool packed = aligned(x);
    if (packed && size - place(PACKS - 1) >= WIDE) {            // all are loaded before the first is looked at
        Pack<V> packs[PACKS];
        #pragma unroll
        for (int p = 0; p < PACKS; p++) packs[p] = *(const Pack<V> *)(x + place(p));
        #pragma unroll
        for (int k = 0; k < MINE; k++) v[k] = get(packs[k / WIDE].at[k % WIDE]);
    } else {
        #pragma unroll
        for (int p = 0; p < PACKS; p++) load(v + p * WIDE, x + place(p), size - place(p), packed);
    }
}

template <typename V> __device__ inline void give(V *y, const A (&v)[MINE], I size) {
    bool packed = aligned(y);
    #pragma unroll
    for (int p = 0; p < PACKS; p++) store(y + place(p), v + p * WIDE, size - place(p), packed);
}

// y = f(y + b) in place, b a number a channel, which changes every `inner` numbers, or null

extern "C" __global__ void bias_activation(T *y, I size, const B *b, I inner, unsigned inner_m, I inner_s, I channels, unsigned channels_m,
                                           I channels_s, I kind) {
    A v[MINE];
    take(v, y, size);
    if (b) {
        Divisor by_inner{inner, inner_m, inner_s}, by_channels{channels, channels_m, channels_s};
        #pragma unroll
        for (int p = 0; p < PACKS; p++) {
            if (inner % WIDE == 0) {                            // a pack lies in one channel
                A its = get(b[place(p) / by_inner % by_channels]);
                #pragma unroll
                for (int j = 0; j < WIDE; j++) v[p * WIDE + j] += its;
            } else {
                #pragma unroll
                for (int j = 0; j < WIDE; j++) v[p * WIDE + j] += get(b[(place(p) + j) / by_inner % by_channels]);
            }
        }
    }
    activate(v, kind);
    give(y, v, size);
}

// gz = gy f'(z), found from y = f(z); gz may be gy

extern "C" __global__ void activation_gradient(const T *gy, const T *y, I size, I kind, T *gz) {
    A g[MINE], v[MINE];
    take(g, gy, size);
    take(v, y, size);
    #pragma unroll
    for (int k = 0; k < MINE; k++) {
        A slope = kind == RELU ? A(v[k] > 0) : kind == TANH ? 1 - v[k] * v[k] : v[k] * (1 - v[k]);
        g[k] *= slope;
    }
    give(gz, g, size);
}

// Dropout: see reference_layers.dropout_mask. first: the number of x's first element. its_seed, upper, layer: mixed already; step: too,
// unless it lies on the device, at `steps`: the low half of it, if it has 64 bits

__device__ inline unsigned mix(unsigned h) {
    h = (h ^ h >> 16) * 0x7FEB352Du;
    h = (h ^ h >> 15) * 0x846CA68Bu;
    return h ^ h >> 16;
}

extern "C" __global__ void dropout(const T *x, I size, unsigned long long first, unsigned seed, unsigned upper, unsigned step,
                                   const unsigned *steps, unsigned layer, unsigned limit, A scale, T *y, bool *mask) {
    if (steps) step = mix(*steps + 0x9E3779B9u);
    A v[MINE];
    take(v, x, size);
    A kept[MINE];
    #pragma unroll
    for (int k = 0; k < MINE; k++) {
        unsigned long long element = first + (unsigned long long)(place(k / WIDE) + k % WIDE);
        unsigned h = mix((unsigned)element ^ mix((unsigned)(element >> 32)) ^ seed);
        kept[k] = mix(mix(mix(h ^ upper) ^ step) ^ layer) >= limit;
        v[k] *= kept[k] * scale;
    }
    give(mask, kept, size);
    give(y, v, size);
}

extern "C" __global__ void dropout_gradient(const T *gy, const bool *mask, I size, A scale, T *gx) {
    A g[MINE], kept[MINE];
    take(g, gy, size);
    take(kept, mask, size);
    #pragma unroll
    for (int k = 0; k < MINE; k++) g[k] *= kept[k] * scale;
    give(gx, g, size);
}

// y = x, rounded to B

extern "C" __global__ void cast(const T *x, I size, B *y) {
    A v[MINE];
    take(v, x, size);
    give(y, v, size);
}
