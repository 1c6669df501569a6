// The few instructions for which C++ has no word, each under a name: conversions, and products on tensor cores.
//
// All assembly of minidl is here. The letters and the layout of the fragments are those of NVIDIA's PTX ISA, chapter "Matrix multiply-
// accumulate operation using mma". Tensor cores take bfloat16 and TF32 from sm_80 on.

__device__ inline float half_to_float(unsigned short bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}

__device__ inline unsigned short float_to_half(float x) {           // rounded to the nearest, ties to even
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ inline unsigned to_tf32(float x) {                       // rounded to 10 bits behind the point, ties away from zero
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// d += a b by one warp. Lane l holds, with g = l / 4 and t = l % 4:
//     d  16 x 8    rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2 t and 2 t + 1
//     a  16 x 16   rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns 2 t and 2 t + 1 (a[0], a[1]), and those 8 further on (a[2], a[3])
//     b  16 x 8    column g, rows 2 t and 2 t + 1 (b[0]), and those 8 further on (b[1])
// with two numbers of 16 bits in each word, the first in the lower half. All 32 lanes must be there: "volatile" keeps the compiler from
// moving a product to where only some of them need its result

__device__ inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with TF32, a float of which only the upper 19 bits are read: d as above, and
//     a  16 x 8    rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns t (a[0], a[1]) and t + 4 (a[2], a[3])
//     b  8 x 8     column g, rows t (b[0]) and t + 4 (b[1])

__device__ inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16 bits by one warp: lane l gives where row l % 8 of matrix l / 8 stands (16 bytes, aligned), and gets of each
// matrix i the numbers 2 t and 2 t + 1 of row g as r[i]

__device__ inline void load_matrices(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(shared)) : "memory");
}
