// Convolution as a matrix product whose one factor, the columns of im2col, is never in memory: an implicit GEMM.
//
// A block makes a tile of the result, ROWS x COLUMNS, and goes DEPTH terms of its sums at a time. Of both factors it brings what these
// terms need into shared memory: of the one as it lies ("map": the filters, or the output's gradient), of the other number by number from
// wherever in the image the column has it. While one step is multiplied, the numbers of the next are on their way into registers.
//
//     WAY        rows       columns                     terms of a sum              map    image    result
//     FORWARD    filters    positions of all images     channels, filter's places   w      x        y
//     INPUT      channels   positions of one residue    filters, filter's places    w      gy       gx
//     WEIGHTS    filters    channels, filter's places   positions of all images     gy     x        gw
//
// With a stride, an input's position meets only those of the filter's places that are at the right distance modulo the stride: INPUT does
// each residue class by itself. A long sum for a small result is cut into `splits` parts, which `finish` adds in their order.
//
// Macros beside T, A and I: WAY; ROWS: 32, 64 or 128; TENSOR: whether tensor cores multiply (float is rounded to TF32 then); M, the type of
// the map's numbers; Y, of the result's; B, of the bias's. pairs: whether two neighbouring terms lie side by side in the map, aligned.

#include "packs.cuh"

#define FORWARD 0
#define INPUT 1
#define WEIGHTS 2

#if TENSOR
typedef unsigned Word;                                  // two numbers of 16 bits, or one in TF32
#else
typedef T Word;
#endif

constexpr int THREADS = 256, COLUMNS = 128;
constexpr int PER = TENSOR && sizeof(T) == 2 ? 2 : 1;   // numbers in a word
constexpr int WORDS = 64 / sizeof(Word);                // of a row of a tile, at a time
constexpr int DEPTH = WORDS * PER;
constexpr int STEP = WORDS + 16 / sizeof(Word);         // from row to row: 8 rows of 16 bytes fall on different banks
constexpr int LEFT = ROWS * WORDS / THREADS, RIGHT = COLUMNS * WORDS / THREADS;    // words that a thread brings
constexpr int APART = THREADS / WORDS;                  // rows between two of them
constexpr int AHEAD = (sizeof(I) == 8 ? 64 : 128) / DEPTH;         // steps whose terms are found at a time, a term a thread
constexpr int RESIDENT = sizeof(A) == 8 ? 1 : 2;         // blocks on a multiprocessor, which share its registers
constexpr int NOWHERE = -(1 << 29);                     // a row outside every image

struct alignas(16) Place {      // of a column or of a term: the sum of both gives a number of the image
    I image;
    I other;                    // where a column's results go, or where a term's numbers are in the map; -1: there is none
    int row, column;
};

constexpr int QUAD = 16 / sizeof(Word);
struct alignas(16) Quad { Word at[QUAD]; };
struct alignas(2 * sizeof(Word)) Two { Word at[2]; };
struct alignas(2 * sizeof(M)) PairOf { M at[2]; };

struct Shape {                  // as in implicit.py
    I images, groups, rows, channels, height, width, down, across;
    I kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    I residue_h, residue_w, first_h, first_w, period_h, period_w, count_h, count_w;         // of INPUT, found by the block
};

// Which of the filter's places along an axis a residue class meets: first, first + period, ...

__device__ inline void meet(I residue, I kernel, I stride, I padding, I dilation, I period, I &first, I &count) {
    first = 0;
    while (first < period && (residue + padding - first * dilation) % stride) first++;
    count = first < period && first < kernel ? (kernel - 1 - first) / period + 1 : 0;
}

// Position i of all images, and number i of a patch: their places in the image, and in the other array

__device__ inline Place position(I i, const Shape &s, I group) {
    I across = WAY == INPUT ? (s.across - s.residue_w + s.stride_w - 1) / s.stride_w : s.across;
    I down = WAY == INPUT ? (s.down - s.residue_h + s.stride_h - 1) / s.stride_h : s.down;
    I column = i % across, row = i / across % down, n = i / across / down;
    Place p;
    p.row = (int)(WAY == INPUT ? row : row * s.stride_h - s.padding_h);
    p.column = (int)(WAY == INPUT ? column : column * s.stride_w - s.padding_w);
    p.image = (n * s.groups + group) * s.channels * s.height * s.width + p.row * s.width + p.column;
    if (WAY == INPUT) row = s.residue_h + row * s.stride_h, column = s.residue_w + column * s.stride_w;
    p.other = (n * s.groups + group) * s.rows * s.down * s.across + row * s.across + column;
    return p;
}

__device__ inline Place in_patch(I i, const Shape &s) {
    I across = WAY == INPUT ? s.count_w : s.kernel_w, down = WAY == INPUT ? s.count_h : s.kernel_h;
    I column = i % across, row = i / across % down, channel = i / across / down;
    Place p;
    if (WAY == INPUT) {
        column = s.first_w + column * s.period_w, row = s.first_h + row * s.period_h;
        p.other = (channel * s.rows * s.kernel_h + row) * s.kernel_w + column;
        p.row = (int)((s.residue_h + s.padding_h - row * s.dilation_h) / s.stride_h);
        p.column = (int)((s.residue_w + s.padding_w - column * s.dilation_w) / s.stride_w);
    } else {
        p.other = i;
        p.row = (int)(row * s.dilation_h);
        p.column = (int)(column * s.dilation_w);
    }
    p.image = channel * s.height * s.width + p.row * s.width + p.column;
    return p;
}

__device__ inline T number(T x) { return x; }
template <typename V> __device__ inline T number(V x) { return put<T>(get(x)); }

// A place is read as a whole, in one load of 16 bytes, whatever of it is needed then: & and not &&

__device__ inline T gather(const T *image, Place column, Place term, int height, int width) {
    bool inside = ((unsigned)(column.row + term.row) < (unsigned)height) & ((unsigned)(column.column + term.column) < (unsigned)width);
    I at = inside ? column.image + term.image : 0;
    return inside ? image[at] : T{};
}

#if TENSOR

__device__ inline unsigned word(float x, float) { return to_tf32(x); }
__device__ inline unsigned word(half_t x, half_t y) { return x.bits | (unsigned)y.bits << 16; }
__device__ inline unsigned word(bfloat_t x, bfloat_t y) { return x.bits | (unsigned)y.bits << 16; }

__device__ inline void mma(float, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_tf32(d, a, b); }
__device__ inline void mma(half_t, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_f16(d, a, b); }
__device__ inline void mma(bfloat_t, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_bf16(d, a, b); }

// A warp has half of the rows, and 32 columns: TALL x 4 tiles of 16 x 8

constexpr int TALL = ROWS / 32;

struct Sums {
    float v[TALL][4][4];

    template <int from, int to> __device__ void add(const Word (*left)[STEP], const Word (*right)[STEP]) {    // words of each row
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        left += warp % 2 * (ROWS / 2) + lane % 16;
        right += warp / 2 * 32 + lane / 16 * 8 + lane % 8;
        #pragma unroll
        for (int k = from; k < to; k += 8) {
            unsigned a[TALL][4], b[2][4];
            #pragma unroll
            for (int i = 0; i < TALL; i++) load_matrices(a[i], &left[i * 16][k + lane / 16 * 4]);
            #pragma unroll
            for (int j = 0; j < 2; j++) load_matrices(b[j], &right[j * 16][k + lane / 8 % 2 * 4]);
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                unsigned its[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                #pragma unroll
                for (int i = 0; i < TALL; i++) mma(T{}, v[i][j], a[i], its);
            }
        }
    }

    // Numbers of a warp go through shared memory, 16 rows at a time: there neighbouring threads find neighbouring columns, as memory wants
    template <typename Give> __device__ void each(Word *shared, Give give) const {
        static_assert(2 * COLUMNS * STEP >= THREADS / 32 * 16 * 40, "the right tiles have room for it");
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        Word (*own)[40] = (Word (*)[40])shared + warp * 16;     // 32 columns, and 8 so that 4 rows of pairs fall on different banks
        #pragma unroll
        for (int i = 0; i < TALL; i++) {
            __syncwarp();                                       // the last rows have been read
            #pragma unroll
            for (int j = 0; j < 4; j++)
                #pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    Two pair{__float_as_uint(v[i][j][e]), __float_as_uint(v[i][j][e + 1])};
                    *(Two *)&own[e / 2 * 8 + lane / 4][j * 8 + lane % 4 * 2] = pair;
                }
            __syncwarp();
            #pragma unroll 4
            for (int row = 0; row < 16; row++)
                give(warp % 2 * (ROWS / 2) + i * 16 + row, warp / 2 * 32 + lane, __uint_as_float(own[row][lane]));
        }
    }
};

#else

__device__ inline Word word(T x, T) { return x; }

// A thread has every 16th row and column, a warp 4 x 8 of the threads: what it reads at a time falls on different banks

constexpr int TALL = ROWS / 16, BROAD = COLUMNS / 16;

struct Sums {
    A v[TALL][BROAD];

    __device__ static int row() { return threadIdx.x / 64 * 4 + threadIdx.x % 32 / 8; }
    __device__ static int column() { return threadIdx.x / 32 % 2 * 8 + threadIdx.x % 8; }

    template <int from, int to> __device__ void add(const Word (*left)[STEP], const Word (*right)[STEP]) {    // words of each row
        left += row();
        right += column();
        #pragma unroll 1                                        // more would need more registers than there are
        for (int k = from; k < to; k += 2) {
            Two a[TALL];
            #pragma unroll
            for (int i = 0; i < TALL; i++) a[i] = *(const Two *)&left[i * 16][k];
            #pragma unroll
            for (int j = 0; j < BROAD; j++) {
                Two b = *(const Two *)&right[j * 16][k];
                #pragma unroll
                for (int i = 0; i < TALL; i++) {
                    v[i][j] += get(a[i].at[0]) * get(b.at[0]);
                    v[i][j] += get(a[i].at[1]) * get(b.at[1]);
                }
            }
        }
    }

    template <typename Give> __device__ void each(Word *, Give give) const {
        #pragma unroll
        for (int i = 0; i < TALL; i++)
            #pragma unroll
            for (int j = 0; j < BROAD; j++) give(row() + i * 16, column() + j * 16, v[i][j]);
    }
};

#endif

extern "C" __global__ void __launch_bounds__(256, RESIDENT) implicit(
    const M *map, const T *image, Y *y, A *parts, const B *bias, I kind, I pairs, I splits, I size, I images, I groups, I rows, I channels, I height,
    I width, I down, I across, I kernel_h, I kernel_w, I stride_h, I stride_w, I padding_h, I padding_w, I dilation_h, I dilation_w,
    I period_h, I period_w) {
    alignas(16) __shared__ Word left[2][ROWS][STEP];
    alignas(16) __shared__ Word right[2][COLUMNS][STEP];
    __shared__ Place terms[2 * AHEAD][DEPTH];
    __shared__ Place places[COLUMNS];
    Shape s{images, groups, rows, channels, height, width, down, across, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w,
            dilation_h, dilation_w, 0, 0, 0, 0, period_h, period_w, kernel_h, kernel_w};

    // which tile this block makes, and of which part of the sums
    int tid = threadIdx.x;
    I strips = (rows + ROWS - 1) / ROWS;
    I top = (I)blockIdx.x % strips * ROWS, start = (I)blockIdx.x / strips * COLUMNS;
    I part = (I)blockIdx.z % splits, group = (I)blockIdx.z / splits;
    if (WAY == INPUT) {
        s.residue_h = (I)blockIdx.y / stride_w, s.residue_w = (I)blockIdx.y % stride_w;
        meet(s.residue_h, kernel_h, stride_h, padding_h, dilation_h, period_h, s.first_h, s.count_h);
        meet(s.residue_w, kernel_w, stride_w, padding_w, dilation_w, period_w, s.first_w, s.count_w);
        down = (down - s.residue_h + stride_h - 1) / stride_h;
        across = (across - s.residue_w + stride_w - 1) / stride_w;
    }
    I positions = images * down * across, patch = channels * s.count_h * s.count_w;
    I columns = WAY == WEIGHTS ? patch : positions, depth = WAY == WEIGHTS ? positions : patch;
    if (start >= columns) return;
    I steps = (depth + DEPTH - 1) / DEPTH, share = (steps + splits - 1) / splits;
    I begin = part * share, end = begin + share < steps ? begin + share : steps;

    // from row to row of the map and of the result
    I map_step = WAY == FORWARD ? patch : WAY == INPUT ? kernel_h * kernel_w : down * across;
    I y_step = WAY == WEIGHTS ? patch : s.down * s.across;
    map += (WAY == FORWARD ? group * rows * patch : WAY == INPUT ? group * channels * rows * kernel_h * kernel_w : 0) + top * map_step;

    if (tid < COLUMNS) {
        I i = start + tid;
        Place p{0, -1, NOWHERE, NOWHERE};
        if (i < columns) {
            p = WAY == WEIGHTS ? in_patch(i, s) : position(i, s, group);
            p.other += (WAY == WEIGHTS ? group * rows * patch : 0) + top * y_step;
        }
        places[tid] = p;
    }

    auto plan = [&](I step) {                               // where the terms of AHEAD steps are, from this one on
        if (tid < AHEAD * DEPTH) {
            I k = step * DEPTH + tid;
            Place p{0, -1, NOWHERE, NOWHERE};
            if (k < depth) p = WAY == WEIGHTS ? position(k, s, group) : in_patch(k, s);
            terms[(step + tid / DEPTH) % (2 * AHEAD)][tid % DEPTH] = p;
        }
    };

    // A thread brings one word of every APARTth row; of the right tile, where neighbouring columns and not neighbouring terms lie side by
    // side in memory, half of a row. What comes from memory is not looked at before it is kept: meanwhile the tensor cores work
    M a[LEFT][PER];
    T b[RIGHT][PER];
    int k = tid % WORDS, first = tid / WORDS, half = tid / COLUMNS, mine = tid % COLUMNS, some = (int)(rows - top);

    auto fetch_left = [&](I step) {
        const Place *here = terms[step % (2 * AHEAD)];
        I one = here[k * PER].other, other = here[k * PER + PER - 1].other;
        #pragma unroll
        for (int i = 0; i < LEFT; i++) {
            int row = first + i * APART;
            I from = (row < some ? row : some - 1) * map_step;      // beyond the last row that one again: it is not stored
            if (PER == 2 && WAY != INPUT && pairs) {
                PairOf pair = one >= 0 ? *(const PairOf *)&map[from + one] : PairOf{};
                a[i][0] = pair.at[0], a[i][PER - 1] = pair.at[1];
            } else {
                a[i][0] = one >= 0 ? map[from + one] : M{};
                if (PER == 2) a[i][PER - 1] = other >= 0 ? map[from + other] : M{};
            }
        }
    };

    auto fetch_right = [&](I step) {
        const Place *here = terms[step % (2 * AHEAD)];
        #pragma unroll
        for (int i = 0; i < RIGHT; i++) {
            Place column = places[WAY == WEIGHTS ? first + i * APART : mine];
            #pragma unroll
            for (int e = 0; e < PER; e++)
                b[i][e] = gather(image, column, here[(WAY == WEIGHTS ? k : half * RIGHT + i) * PER + e], (int)height, (int)width);
        }
    };

    auto keep_left = [&](I step) {
        #pragma unroll
        for (int i = 0; i < LEFT; i++) left[step & 1][first + i * APART][k] = word(number(a[i][0]), number(a[i][PER - 1]));
    };

    auto keep_right = [&](I step) {
        #pragma unroll
        for (int i = 0; i < RIGHT; i++)
            if (WAY == WEIGHTS) {
                right[step & 1][first + i * APART][k] = word(b[i][0], b[i][PER - 1]);
            } else if (i % QUAD == 0) {
                Quad quad;
                #pragma unroll
                for (int j = 0; j < QUAD; j++) quad.at[j] = word(b[i + j][0], b[i + j][PER - 1]);
                *(Quad *)&right[step & 1][mine][half * RIGHT + i] = quad;
            }
    };

    Sums sums{};
    plan(begin);
    __syncthreads();
    fetch_left(begin), fetch_right(begin);
    keep_left(begin), keep_right(begin);
    __syncthreads();
    for (I step = begin; step < end; step++) {                  // what the last round fetches is not used
        const auto *l = left[step & 1], *r = right[step & 1];
        if ((step + 2 - begin) % AHEAD == 0) plan(step + 2);    // the divisions in it take long
        fetch_left(step + 1);
        sums.add<0, WORDS / 2>(l, r);
        keep_left(step + 1);
        fetch_right(step + 1);
        sums.add<WORDS / 2, WORDS>(l, r);
        keep_right(step + 1);
        __syncthreads();
    }

    sums.each(&right[0][0][0], [&](int row, int column, A v) {
        I at = places[column].other;
        if (at < 0 || top + row >= rows) return;
        at += row * y_step;
        if (parts) {
            parts[part * size + at] = v;
        } else {
            if (bias) v += get(bias[group * rows + top + row]);
            y[at] = put<Y>(activated(v, kind));
        }
    });
}

// y = f(sum of the parts + b), b a number a channel, which changes every `inner` numbers, or null

extern "C" __global__ void __launch_bounds__(256) finish(
    const A *parts, I splits, I size, const B *bias, I inner, I channels, I kind, Y *y) {
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= size) return;
    A v = 0;
    for (I part = 0; part < splits; part++) v += parts[part * size + i];
    if (bias) v += get(bias[i / inner % channels]);
    y[i] = put<Y>(activated(v, kind));
}
