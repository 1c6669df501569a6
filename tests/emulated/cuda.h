// CUDA C++ for the CPU: what a kernel finds around it on a GPU, as far as minidl's kernels ask for it.
//
// kernels.py puts this file before a kernel's source and both into one namespace. No header is included: compiling is quick so, and a
// kernel cannot lean on what NVRTC would not give it. The threads of a block are fibers, which runtime.cpp runs in turn.

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static __thread                 // so that the loader knows how many bytes of it a file has, and where
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

typedef unsigned long size_t;
typedef unsigned long long ull;
struct half_t;
struct bfloat_t;

// Where a thread is

struct dim3 { unsigned x = 1, y = 1, z = 1; };
typedef dim3 uint3;

extern "C" {
extern dim3 emulated_thread, emulated_block, emulated_threads, emulated_blocks;
extern char emulated_shared[];
void emulated_barrier(int line, int how, int* value);
void emulated_warp(unsigned mask, int what, void* mine, int line);
[[noreturn]] void emulated_error(const char* message);
int emulated_lane();
}

#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_threads
#define gridDim emulated_blocks
static const int warpSize = 32;

// Threads wait for one another. Where they wait is known by the line, which stands as a last, hidden argument

#define LINE int line = __builtin_LINE()

inline void __syncthreads(LINE) { emulated_barrier(line, 0, nullptr); }
inline int __syncthreads_count(int value, LINE) { value = value != 0; emulated_barrier(line, 1, &value); return value; }
inline int __syncthreads_and(int value, LINE) { value = value != 0; emulated_barrier(line, 2, &value); return value; }
inline int __syncthreads_or(int value, LINE) { value = value != 0; emulated_barrier(line, 3, &value); return value; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace inside {

enum Collective { SYNC, SHUFFLE, VOTE, MMA_F16, MMA_BF16, MMA_TF32, MATRICES };
struct Shuffle { ull bits; int source; };
struct Mma { float* d; const unsigned *a, *b; };
struct Matrices { unsigned* r; const void* row; };
static const unsigned ALL = 0xffffffffu;
constexpr int first(int n = 1024, int = 0, int = 0) { return n; }         // of the launch bounds: threads of a block at most

template <typename V> inline V shuffled(unsigned mask, V v, int source, int line) {
    Shuffle s = {0, source};
    __builtin_memcpy(&s.bits, &v, sizeof(V));
    emulated_warp(mask, SHUFFLE, &s, line);
    __builtin_memcpy(&v, &s.bits, sizeof(V));
    return v;
}

}

inline void __syncwarp(unsigned mask = inside::ALL, LINE) { emulated_warp(mask, inside::SYNC, nullptr, line); }

#define SHUFFLES(V)                                                                                                     \
    inline V __shfl_sync(unsigned mask, V v, int lane, int width = 32, LINE) {                                          \
        return inside::shuffled(mask, v, (emulated_lane() & -width) | (lane & (width - 1)), line);                              \
    }                                                                                                                   \
    inline V __shfl_xor_sync(unsigned mask, V v, int bits, int width = 32, LINE) {                                      \
        int me = emulated_lane(), source = me ^ bits;                                                                   \
        return inside::shuffled(mask, v, source < (me & -width) + width ? source : me, line);                                   \
    }                                                                                                                   \
    inline V __shfl_up_sync(unsigned mask, V v, unsigned by, int width = 32, LINE) {                                    \
        int me = emulated_lane();                                                                                       \
        return inside::shuffled(mask, v, (me & (width - 1)) >= (int)by ? me - (int)by : me, line);                              \
    }                                                                                                                   \
    inline V __shfl_down_sync(unsigned mask, V v, unsigned by, int width = 32, LINE) {                                  \
        int me = emulated_lane();                                                                                       \
        return inside::shuffled(mask, v, (me & (width - 1)) + (int)by < width ? me + (int)by : me, line);                       \
    }
SHUFFLES(int) SHUFFLES(unsigned) SHUFFLES(long) SHUFFLES(unsigned long) SHUFFLES(long long) SHUFFLES(ull) SHUFFLES(float) SHUFFLES(double)

inline unsigned __ballot_sync(unsigned mask, int predicate, LINE) {
    unsigned votes = predicate != 0;
    emulated_warp(mask, inside::VOTE, &votes, line);
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, LINE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, LINE) { return __ballot_sync(mask, predicate, line) == mask; }

// What stands in ptx.cuh

inline float half_to_float(unsigned short bits) {
    float x = bits & 0x7c00 ? (float)(1024 + (bits & 1023)) : (float)(bits & 1023);     // times 2^(exponent - 25)
    int exponent = bits & 0x7c00 ? bits >> 10 & 31 : 1;
    x = exponent == 31 ? (bits & 1023 ? __builtin_nanf("") : __builtin_inff()) : __builtin_ldexpf(x, exponent - 25);
    return bits & 0x8000 ? -x : x;
}

inline unsigned short float_to_half(float x) {
    unsigned short sign = __builtin_signbit(x) ? 0x8000 : 0;
    double size = __builtin_fabs((double)x);
    if (size != size) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    int exponent;
    __builtin_frexp(size, &exponent);                                                   // size = m 2^exponent, 0.5 <= m < 1
    exponent = size < 6.103515625e-5 ? -14 : exponent - 1;                             // 2^-14: below, numbers are evenly spaced
    return sign | (unsigned short)(((exponent + 14) << 10) + (int)__builtin_nearbyint(__builtin_ldexp(size, 10 - exponent)));
}

inline unsigned to_tf32(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits & ~0x1fffu : (bits + 0x1000u) & ~0x1fffu;
}

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], LINE) {
    inside::Mma mine = {d, a, b};
    emulated_warp(inside::ALL, inside::MMA_F16, &mine, line);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], LINE) {
    inside::Mma mine = {d, a, b};
    emulated_warp(inside::ALL, inside::MMA_BF16, &mine, line);
}
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], LINE) {
    inside::Mma mine = {d, a, b};
    emulated_warp(inside::ALL, inside::MMA_TF32, &mine, line);
}
inline void load_matrices(unsigned (&r)[4], const void* row, LINE) {
    inside::Matrices mine = {r, row};
    emulated_warp(inside::ALL, inside::MATRICES, &mine, line);
}

// Several numbers in one load, which must be aligned for it

#define VECTORS(V, name, bytes)                                                                                         \
    struct alignas(2 * sizeof(V)) name##2 { V x, y; };                                                                  \
    struct alignas(bytes) name##4 { V x, y, z, w; };                                                                    \
    inline name##2 make_##name##2(V x, V y) { return {x, y}; }                                                          \
    inline name##4 make_##name##4(V x, V y, V z, V w) { return {x, y, z, w}; }
VECTORS(float, float, 16) VECTORS(int, int, 16) VECTORS(unsigned, uint, 16) VECTORS(double, double, 16) VECTORS(long long, longlong, 16)
VECTORS(short, short, 8) VECTORS(unsigned short, ushort, 8) VECTORS(unsigned char, uchar, 4) VECTORS(signed char, char, 4)
struct float3 { float x, y, z; };
struct int3 { int x, y, z; };

// Memory

template <typename V> inline V __ldg(const V* p) { return *p; }
template <typename V> inline V __ldcs(const V* p) { return *p; }
template <typename V> inline V __ldcg(const V* p) { return *p; }
template <typename V> inline void __stcs(V* p, V v) { *p = v; }
template <typename V> inline void __stcg(V* p, V v) { *p = v; }

#define ATOMICS(V)                                                                                                      \
    inline V atomicExch(V* p, V v) { V old = *p; *p = v; return old; }                                                  \
    inline V atomicAdd(V* p, V v) { V old = *p; *p = old + v; return old; }
#define WHOLE_ATOMICS(V)                                                                                                \
    inline V atomicMax(V* p, V v) { V old = *p; *p = old < v ? v : old; return old; }                                   \
    inline V atomicMin(V* p, V v) { V old = *p; *p = v < old ? v : old; return old; }                                   \
    inline V atomicOr(V* p, V v) { V old = *p; *p = old | v; return old; }                                              \
    inline V atomicAnd(V* p, V v) { V old = *p; *p = old & v; return old; }                                             \
    inline V atomicCAS(V* p, V wanted, V v) { V old = *p; *p = old == wanted ? v : old; return old; }
ATOMICS(float) ATOMICS(double) ATOMICS(int) ATOMICS(unsigned) ATOMICS(ull) WHOLE_ATOMICS(int) WHOLE_ATOMICS(unsigned) WHOLE_ATOMICS(ull)
inline unsigned atomicInc(unsigned* p, unsigned last) { unsigned old = *p; *p = old >= last ? 0 : old + 1; return old; }

// Bits

template <typename To, typename From> inline To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }
inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((ull)x * y >> 32); }
inline int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
inline ull __umul64hi(ull x, ull y) { return (ull)((unsigned __int128)x * y >> 64); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(ull x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) { return (unsigned)((((ull)high << 32 | low) << (by & 31)) >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) { return (unsigned)(((ull)high << 32 | low) >> (by & 31)); }

// Mathematics, for float under both its names

#define FUNCTION1(g)                                                                                                    \
    extern "C" double g(double) noexcept;                                                                               \
    extern "C" float g##f(float) noexcept;                                                                              \
    inline float g(float x) { return __builtin_##g##f(x); }
#define FUNCTION2(g)                                                                                                    \
    extern "C" double g(double, double) noexcept;                                                                       \
    extern "C" float g##f(float, float) noexcept;                                                                       \
    inline float g(float x, float y) { return __builtin_##g##f(x, y); }
FUNCTION1(exp) FUNCTION1(exp2) FUNCTION1(expm1) FUNCTION1(log) FUNCTION1(log2) FUNCTION1(log10) FUNCTION1(log1p) FUNCTION1(sqrt) FUNCTION1(cbrt)
FUNCTION1(sin) FUNCTION1(cos) FUNCTION1(tan) FUNCTION1(sinh) FUNCTION1(cosh) FUNCTION1(tanh) FUNCTION1(asin) FUNCTION1(acos) FUNCTION1(atan)
FUNCTION1(erf) FUNCTION1(erfc) FUNCTION1(floor) FUNCTION1(ceil) FUNCTION1(trunc) FUNCTION1(round) FUNCTION1(rint) FUNCTION1(fabs)
FUNCTION2(pow) FUNCTION2(fmod) FUNCTION2(fmin) FUNCTION2(fmax) FUNCTION2(copysign) FUNCTION2(atan2) FUNCTION2(hypot)
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
extern "C" double ldexp(double, int) noexcept;
extern "C" float ldexpf(float, int) noexcept;
inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float rsqrtf(float x) { return 1 / __builtin_sqrtf(x); }
inline double rsqrt(double x) { return 1 / __builtin_sqrt(x); }
inline float rsqrt(float x) { return 1 / __builtin_sqrtf(x); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline bool signbit(double x) { return __builtin_signbit(x); }
inline float __expf(float x) { return __builtin_expf(x); }
inline float __logf(float x) { return __builtin_logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }
inline int __float2int_rn(float x) { return (int)__builtin_rintf(x); }
inline int __float2int_rd(float x) { return (int)__builtin_floorf(x); }

#define ORDER(V)                                                                                                        \
    inline V min(V x, V y) { return y < x ? y : x; }                                                                    \
    inline V max(V x, V y) { return x < y ? y : x; }
ORDER(int) ORDER(unsigned) ORDER(long) ORDER(unsigned long) ORDER(long long) ORDER(ull)
inline float min(float x, float y) { return __builtin_fminf(x, y); }                    // a NaN gives way to a number
inline float max(float x, float y) { return __builtin_fmaxf(x, y); }
inline double min(double x, double y) { return __builtin_fmin(x, y); }
inline double max(double x, double y) { return __builtin_fmax(x, y); }
inline unsigned min(int x, unsigned y) { return min((unsigned)x, y); }
inline unsigned min(unsigned x, int y) { return min(x, (unsigned)y); }
inline unsigned max(int x, unsigned y) { return max((unsigned)x, y); }
inline unsigned max(unsigned x, int y) { return max(x, (unsigned)y); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return __builtin_fabsf(x); }
inline double abs(double x) { return __builtin_fabs(x); }

#undef LINE
#undef SHUFFLES
#undef VECTORS
#undef ATOMICS
#undef WHOLE_ATOMICS
#undef FUNCTION1
#undef FUNCTION2
#undef ORDER
