// Memory 16 bytes at a time: WIDE numbers of T, where they begin at a multiple of 16 bytes. And what is done to numbers in registers.

constexpr int WIDE = 16 / sizeof(T);

template <typename V> struct alignas(sizeof(V) * WIDE < 16 ? sizeof(V) * WIDE : 16) Pack { V at[WIDE]; };     // V: T, or bool for a mask

__device__ inline A get(bool x) { return x; }
template <> __device__ inline bool put<bool>(A x) { return x != 0; }

template <typename V> __device__ inline bool aligned(const V *x) { return (unsigned long long)x % alignof(Pack<V>) == 0; }

template <typename V> __device__ inline void load(A *v, const V *x) {               // aligned
    Pack<V> pack = *(const Pack<V> *)x;
    #pragma unroll
    for (int j = 0; j < WIDE; j++) v[j] = get(pack.at[j]);
}

template <typename V> __device__ inline void store(V *y, const A *v) {
    Pack<V> pack;
    #pragma unroll
    for (int j = 0; j < WIDE; j++) pack.at[j] = put<V>(v[j]);
    *(Pack<V> *)y = pack;
}

template <typename V> __device__ inline void load(A *v, const V *x, I count, bool packed) {    // the first `count` of them, and zeros
    if (packed && count >= WIDE)
        load(v, x);
    else {
        #pragma unroll
        for (int j = 0; j < WIDE; j++) v[j] = j < count ? get(x[j]) : A(0);
    }
}

template <typename V> __device__ inline void store(V *y, const A *v, I count, bool packed) {
    if (packed && count >= WIDE)
        store(y, v);
    else {
        #pragma unroll
        for (int j = 0; j < WIDE; j++)
            if (j < count) y[j] = put<V>(v[j]);
    }
}

__device__ inline A infinity() { return __uint_as_float(0x7f800000u); }

// Activations, by number as in elementwise.py

constexpr int RELU = 1, TANH = 2, SIGMOID = 3;

__device__ inline A activated(A z, I kind) {
    if (kind == RELU) return z < 0 ? A(0) : z;                  // a NaN stays one
    if (kind == TANH) return tanh(z);
    if (kind == SIGMOID) return 1 / (1 + exp(-z));              // the power may be infinite: the quotient is 0 then
    return z;
}

template <int n> __device__ inline void activate(A (&v)[n], I kind) {               // one branch for all
    if (kind == RELU) {
        #pragma unroll
        for (int k = 0; k < n; k++) v[k] = activated(v[k], RELU);
    } else if (kind == TANH) {
        #pragma unroll
        for (int k = 0; k < n; k++) v[k] = activated(v[k], TANH);
    } else if (kind == SIGMOID) {
        #pragma unroll
        for (int k = 0; k < n; k++) v[k] = activated(v[k], SIGMOID);
    }
}

// Division by a number that is known before the launch, as a product: i / d = i m / 2^(31 + s), for 0 <= i < 2^31, with the m and s that
// source.divisor gives. Granlund and Montgomery, PLDI 1994.

struct Divisor { I d; unsigned m; I s; };

template <typename N> __device__ inline N operator/(N i, Divisor by) {
    if constexpr (sizeof(N) == 8) return i / by.d;
    else return (N)((unsigned long long)i * by.m >> (31 + by.s));
}

template <typename N> __device__ inline N operator%(N i, Divisor by) { return i - i / by * (N)by.d; }
