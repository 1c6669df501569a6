// The functions of cuBLAS that minidl calls, in the plainest way: matrices are stored by columns, and every number of the result is summed
// in float, or in double for double. What the real library refuses is refused.

#include <cmath>
#include <cstring>

enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

typedef unsigned short u16;

static float number(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static unsigned bits(float x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}

static double get(const void* p, long long i, int type) {
    if (type == R_64F) return ((const double*)p)[i];
    if (type == R_32F) return ((const float*)p)[i];
    u16 b = ((const u16*)p)[i];
    if (type == R_16BF) return number((unsigned)b << 16);
    int exponent = b >> 10 & 31, fraction = b & 1023;
    double x = exponent == 31 ? (fraction ? NAN : INFINITY) : std::ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return b & 0x8000 ? -x : x;
}

static u16 to_half(float x) {
    u16 sign = std::signbit(x) ? 0x8000 : 0;
    double size = std::fabs((double)x);
    if (size != size) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    exponent = size < 6.103515625e-5 ? -14 : exponent - 1;              // 2^-14: below, numbers are evenly spaced
    return sign | (u16)(((exponent + 14) << 10) + (int)std::nearbyint(std::ldexp(size, 10 - exponent)));
}

static void put(void* p, long long i, int type, double x) {
    if (type == R_64F) ((double*)p)[i] = x;
    else if (type == R_32F) ((float*)p)[i] = (float)x;
    else if (type == R_16F) ((u16*)p)[i] = to_half((float)x);
    else {
        unsigned b = bits((float)x);
        ((u16*)p)[i] = x != x ? 0x7fff : (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
    }
}

static float tf32(float x) {
    unsigned b = bits(x);
    return (b & 0x7f800000u) == 0x7f800000u ? x : number((b + 0x1000u) & ~0x1fffu);
}

extern "C" int gemm(int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at, int lda, long long sa, const void* b, int bt,
                    int ldb, long long sb, const void* beta, void* c, int ct, int ldc, long long sc, int batch, int compute) {
    if (m < 0 || n < 0 || k < 0 || batch < 0 || ta < 0 || ta > 2 || tb < 0 || tb > 2) return INVALID_VALUE;
    if (lda < (ta ? k : m) || lda < 1 || ldb < (tb ? n : k) || ldb < 1 || ldc < m || ldc < 1) return INVALID_VALUE;
    bool wide = compute == COMPUTE_64F, half = at == R_16F || at == R_16BF;
    if (at != bt || (wide ? at != R_64F || ct != R_64F : at == R_64F || (ct != at && !(half && ct == R_32F)))) return NOT_SUPPORTED;
    if (!wide && compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32) return NOT_SUPPORTED;
    bool rounded = compute == COMPUTE_32F_FAST_TF32 && at == R_32F;
    double by = wide ? *(const double*)alpha : *(const float*)alpha, keep = wide ? *(const double*)beta : *(const float*)beta;
    for (long long z = 0; z < batch; z++)
        for (long long j = 0; j < n; j++)
            for (long long i = 0; i < m; i++) {
                double sum = 0;
                float narrow = 0;
                for (long long l = 0; l < k; l++) {
                    double x = get(a, z * sa + (ta ? i * lda + l : l * lda + i), at), y = get(b, z * sb + (tb ? l * ldb + j : j * ldb + l), bt);
                    if (wide) sum += x * y;
                    else narrow += rounded ? tf32((float)x) * tf32((float)y) : (float)x * (float)y;
                }
                long long place = z * sc + j * ldc + i;
                double old = keep == 0 ? 0 : keep * get(c, place, ct);          // what C holds is not looked at if beta is 0
                put(c, place, ct, by * (wide ? sum : narrow) + old);
            }
    return SUCCESS;
}
