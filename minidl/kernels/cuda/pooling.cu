// Pooling: every number is written once, by a thread that looks at all that goes into it, so that nothing is added up by several.
//
// Images are (N * C, h, w) on the side of the input and (N * C, out_h, out_w) on that of the output. P is the type of places: which
// number under its window was the largest, counted row by row. What a NaN or an infinity spoils is what it spoils in the reference:
// numbers that do not count are multiplied by 0, not left out.

#include "packs.cuh"

struct Axes {                       // in 32 bits: only a place in memory may need more
    int h, w;

    __device__ inline Axes(I h, I w) : h((int)h), w((int)w) {}
};

// An output looks at the numbers under its window, KH x KW, or as many as there are where these are 0. f(number, place under the window)

template <int KH, int KW, typename F>
__device__ inline void under_window(const T *x, I i, Axes size, Axes kernel, Axes stride, Axes padding, Axes dilation, Divisor out_h,
                                    Divisor out_w, F f) {
    I row = i / out_w;
    int top = (int)(row % out_h) * stride.h - padding.h, left = (int)(i % out_w) * stride.w - padding.w;
    x += row / out_h * size.h * size.w;
    #pragma unroll (KH ? KH : 1)
    for (int a = 0; a < (KH ? KH : kernel.h); a++) {
        #pragma unroll (KW ? KW : 4)
        for (int b = 0; b < (KW ? KW : kernel.w); b++) {
            int h = top + a * dilation.h, w = left + b * dilation.w;
            bool inside = h >= 0 && h < size.h && w >= 0 && w < size.w;
            A v = inside ? get(x[(I)h * size.w + w]) : A(0);
            if (inside) f(v, a * kernel.w + b);
        }
    }
}

#define BY_KERNEL(...)                                                                                                                    \
    if (kernel_h == 2 && kernel_w == 2) under_window<2, 2>(__VA_ARGS__);                                                                  \
    else if (kernel_h == 3 && kernel_w == 3) under_window<3, 3>(__VA_ARGS__);                                                             \
    else under_window<0, 0>(__VA_ARGS__)

extern "C" __global__ void max_pool2d(const T *x, I count, I h, I w, I kernel_h, I kernel_w, I stride_h, I stride_w, I padding_h,
                                      I padding_w, I dilation_h, I dilation_w, I out_h, unsigned out_h_m, I out_h_s, I out_w,
                                      unsigned out_w_m, I out_w_s, T *y, P *places) {
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= count) return;
    A best = -infinity();
    int place = -1;                                             // none yet: nothing but padding
    auto look = [&](A v, int its) {
        if (place < 0 || (!(v <= best) && best == best)) best = v, place = its;     // the first NaN before all, else the first of equal ones
    };
    BY_KERNEL(x, i, {h, w}, {kernel_h, kernel_w}, {stride_h, stride_w}, {padding_h, padding_w}, {dilation_h, dilation_w},
              {out_h, out_h_m, out_h_s}, {out_w, out_w_m, out_w_s}, look);
    y[i] = put<T>(best);
    places[i] = (P)(place < 0 ? 0 : place);
}

// The sum of the numbers under each window, or, where there are places, of those alone

extern "C" __global__ void sum_under(const T *x, const P *places, I count, I h, I w, I kernel_h, I kernel_w, I stride_h, I stride_w,
                                     I padding_h, I padding_w, I dilation_h, I dilation_w, I out_h, unsigned out_h_m, I out_h_s,
                                     I out_w, unsigned out_w_m, I out_w_s, T *y) {
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= count) return;
    A sum = 0;
    int place = places ? (int)places[i] : 0;
    auto look = [&](A v, int its) { sum += places ? v * A(its == place) : v; };
    BY_KERNEL(x, i, {h, w}, {kernel_h, kernel_w}, {stride_h, stride_w}, {padding_h, padding_w}, {dilation_h, dilation_w},
              {out_h, out_h_m, out_h_s}, {out_w, out_w_m, out_w_s}, look);
    y[i] = put<T>(sum);
}

// A number of the input looks at the windows that lie over it, `reach` along each axis at most, or REACH unless that is 0. A thread has V
// neighbours of a row. Windows come in the order of their taps: the last window has the first

template <int V, int REACH>
__device__ inline void over_numbers(const T *gy, const P *places, I groups, Divisor across, Divisor h, I w, Axes kernel, Divisor stride_h,
                                    Divisor stride_w, Axes padding, Axes dilation, Axes out, Axes reach, T *gx) {
    I group = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (group >= groups) return;
    I row = group / across, begin = row / h * out.h * out.w;
    int first = (int)(group % across) * V, y = (int)(row % h) + padding.h;
    A sums[V] = {};
    #pragma unroll 1
    for (int a = 0; a < (REACH ? REACH : reach.h); a++) {
        int oh = y / stride_h - a, i = y - oh * (int)stride_h.d, tap_h = dilation.h == 1 ? i : i / dilation.h;
        bool rows_meet = oh >= 0 && oh < out.h && tap_h < kernel.h && tap_h * dilation.h == i;
        #pragma unroll
        for (int v = 0; v < V; v++) {
            int x = first + v + padding.w, last = x / stride_w;
            #pragma unroll (REACH ? REACH : 1)
            for (int b = 0; b < (REACH ? REACH : reach.w); b++) {
                int ow = last - b, j = x - ow * (int)stride_w.d, tap_w = dilation.w == 1 ? j : j / dilation.w;
                bool meet = rows_meet && ow >= 0 && ow < out.w && tap_w < kernel.w && tap_w * dilation.w == j;
                I at = meet ? begin + (I)oh * out.w + ow : 0;
                A g = meet ? get(gy[at]) : A(0);
                if (places) g *= A(meet && (int)places[at] == tap_h * kernel.w + tap_w);
                sums[v] += g;
            }
        }
    }
    gx += row * w + first;
    if constexpr (V > 1) store(gx, sums);
    else gx[0] = put<T>(sums[0]);
}

extern "C" __global__ void sum_over(const T *gy, const P *places, I groups, I across, unsigned across_m, I across_s, I h, unsigned h_m,
                                    I h_s, I w, I kernel_h, I kernel_w, I stride_h, unsigned stride_h_m, I stride_h_s, I stride_w,
                                    unsigned stride_w_m, I stride_w_s, I padding_h, I padding_w, I dilation_h, I dilation_w, I out_h,
                                    I out_w, I reach_h, I reach_w, T *gx) {
    Divisor by_across{across, across_m, across_s}, by_h{h, h_m, h_s};
    Divisor by_stride_h{stride_h, stride_h_m, stride_h_s}, by_stride_w{stride_w, stride_w_m, stride_w_s};
    Axes kernel{kernel_h, kernel_w}, padding{padding_h, padding_w}, dilation{dilation_h, dilation_w}, out{out_h, out_w};
    Axes reach{reach_h, reach_w};
    int most = reach.h > reach.w ? reach.h : reach.w;
#define OVER(V, REACH) over_numbers<V, REACH>(gy, places, groups, by_across, by_h, w, kernel, by_stride_h, by_stride_w, padding, dilation, \
                                              out, reach, gx)
    if (across < w) {                                           // the rows begin at a pack each
        if (most == 1) OVER(WIDE, 1);
        else if (most == 2) OVER(WIDE, 2);
        else OVER(WIDE, 0);
    } else {
        if (most == 1) OVER(1, 1);
        else if (most == 2) OVER(1, 2);
        else OVER(1, 0);
    }
}
