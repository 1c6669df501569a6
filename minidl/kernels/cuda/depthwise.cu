// Convolution where each filter sees one channel: there is no product of matrices in it, and memory is what it waits for. A thread makes
// one number. Filters are numbered so that channel c has `each` of them: c each, ..., c each + each - 1. Divisions would take longer than
// the sums: they are done as Divisors.
//
// Macros beside T, A and I: M, the type of the filters' numbers; B, of the bias's.

#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256) depthwise(
    const T *x, const M *w, const B *b, I kind, T *y, I size, I height, I width, I kernel_h, I kernel_w, I stride_h, I stride_w,
    I padding_h, I padding_w, I dilation_h, I dilation_w, I filters, unsigned filters_m, I filters_s, I each, unsigned each_m, I each_s,
    I down, unsigned down_m, I down_s, I across, unsigned across_m, I across_s) {
    Divisor by_filters{filters, filters_m, filters_s}, by_each{each, each_m, each_s};
    Divisor by_down{down, down_m, down_s}, by_across{across, across_m, across_s};
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= size) return;
    I line = i / by_across, plane = line / by_down, q = i - line * across, r = line - plane * down, o = plane % by_filters;
    const T *image = x + plane / by_each * height * width;      // (n filters + o) / each = n (filters / each) + o / each
    A sum = 0;
    for (I u = 0; u < kernel_h; u++) {
        I row = r * stride_h - padding_h + u * dilation_h;
        if (row < 0 || row >= height) continue;
        for (I v = 0; v < kernel_w; v++) {
            I column = q * stride_w - padding_w + v * dilation_w;
            if (column < 0 || column >= width) continue;
            sum += get(put<T>(get(w[(o * kernel_h + u) * kernel_w + v]))) * get(image[row * width + column]);
        }
    }
    if (b) sum += get(b[o]);
    y[i] = put<T>(activated(sum, kind));
}

extern "C" __global__ void __launch_bounds__(256) depthwise_input(
    const T *gy, const M *w, const B *b, T *gx, I size, I each, I down, I across, I kernel_h, I kernel_w, I padding_h, I padding_w,
    I dilation_h, I dilation_w, I channels, unsigned channels_m, I channels_s, I height, unsigned height_m, I height_s, I width,
    unsigned width_m, I width_s, I stride_h, unsigned stride_h_m, I stride_h_s, I stride_w, unsigned stride_w_m, I stride_w_s) {
    Divisor by_channels{channels, channels_m, channels_s}, by_height{height, height_m, height_s}, by_width{width, width_m, width_s};
    Divisor by_stride_h{stride_h, stride_h_m, stride_h_s}, by_stride_w{stride_w, stride_w_m, stride_w_s};
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= size) return;
    I line = i / by_width, plane = line / by_height, c = plane % by_channels;
    I row = line - plane * height + padding_h, column = i - line * width + padding_w;
    A sum = 0;
    for (I k = 0; k < each; k++)                                // filter c each + k, whose gradient is plane n (channels each) + c each + k
        for (I u = 0; u < kernel_h; u++) {
            I above = row - u * dilation_h;
            if (above < 0) continue;
            I r = above / by_stride_h;
            if (r * stride_h != above || r >= down) continue;
            for (I v = 0; v < kernel_w; v++) {
                I before = column - v * dilation_w;
                if (before < 0) continue;
                I q = before / by_stride_w;
                if (q * stride_w != before || q >= across) continue;
                sum += get(put<T>(get(w[((c * each + k) * kernel_h + u) * kernel_w + v]))) *
                       get(gy[((plane * each + k) * down + r) * across + q]);
            }
        }
    if (b) sum += get(b[c]);
    gx[i] = put<T>(sum);
}

// A block sums one number of gw: place blockIdx.x of filter blockIdx.y

extern "C" __global__ void __launch_bounds__(256) depthwise_weights(
    const T *x, const T *gy, A *gw, I images, I filters, I each, I height, I width, I down, I kernel_w, I stride_h, I stride_w,
    I padding_h, I padding_w, I dilation_h, I dilation_w, I across, unsigned across_m, I across_s) {
    Divisor by_across{across, across_m, across_s};
    I top = (I)blockIdx.x / kernel_w * dilation_h - padding_h, left = (I)blockIdx.x % kernel_w * dilation_w - padding_w;
    for (I o = (I)blockIdx.y; o < filters; o += (I)gridDim.y) {
        A sum = 0;
        for (I n = 0; n < images; n++) {
            const T *image = x + (n * (filters / each) + o / each) * height * width;
            const T *from = gy + (n * filters + o) * down * across;
            for (I p = (I)threadIdx.x; p < down * across; p += (I)blockDim.x) {
                I r = p / by_across, row = r * stride_h + top, column = (p - r * across) * stride_w + left;
                if (row >= 0 && row < height && column >= 0 && column < width) sum += get(from[p]) * get(image[row * width + column]);
            }
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) gw[o * (I)gridDim.x + (I)blockIdx.x] = sum;
    }
}
