// Convolution where each filter sees one channel: there is no product of matrices in it, and memory is what it waits for. A thread makes
// one number. Filters are numbered so that channel c has `each` of them: c each, ..., c each + each - 1.
//
// Macros beside T, A and I: M, the type of the filters' numbers; B, of the bias's.

#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256) depthwise(
    const T *x, const M *w, const B *b, I kind, T *y, I size, I filters, I each, I height, I width, I down, I across, I kernel_h,
    I kernel_w, I stride_h, I stride_w, I padding_h, I padding_w, I dilation_h, I dilation_w) {
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= size) return;
    I q = i % across, r = i / across % down, o = i / across / down % filters, n = i / across / down / filters;
    const T *image = x + (n * (filters / each) + o / each) * height * width;
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
    const T *gy, const M *w, const B *b, T *gx, I size, I filters, I each, I height, I width, I down, I across, I kernel_h, I kernel_w,
    I stride_h, I stride_w, I padding_h, I padding_w, I dilation_h, I dilation_w) {
    I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (i >= size) return;
    I column = i % width + padding_w, row = i / width % height + padding_h;
    I c = i / width / height % (filters / each), n = i / width / height / (filters / each);
    A sum = 0;
    for (I o = c * each; o < c * each + each; o++)
        for (I u = 0; u < kernel_h; u++) {
            I r = row - u * dilation_h;
            if (r < 0 || r % stride_h || r / stride_h >= down) continue;
            for (I v = 0; v < kernel_w; v++) {
                I q = column - v * dilation_w;
                if (q < 0 || q % stride_w || q / stride_w >= across) continue;
                sum += get(put<T>(get(w[(o * kernel_h + u) * kernel_w + v]))) *
                       get(gy[((n * filters + o) * down + r / stride_h) * across + q / stride_w]);
            }
        }
    if (b) sum += get(b[c]);
    gx[i] = put<T>(sum);
}

// A block sums one number of gw: place blockIdx.x of filter blockIdx.y

extern "C" __global__ void __launch_bounds__(256) depthwise_weights(
    const T *x, const T *gy, A *gw, I images, I filters, I each, I height, I width, I down, I across, I kernel_w, I stride_h, I stride_w,
    I padding_h, I padding_w, I dilation_h, I dilation_w) {
    I top = (I)blockIdx.x / kernel_w * dilation_h - padding_h, left = (I)blockIdx.x % kernel_w * dilation_w - padding_w;
    for (I o = (I)blockIdx.y; o < filters; o += (I)gridDim.y) {
        A sum = 0;
        for (I n = 0; n < images; n++) {
            const T *image = x + (n * (filters / each) + o / each) * height * width;
            const T *from = gy + (n * filters + o) * down * across;
            for (I p = (I)threadIdx.x; p < down * across; p += (I)blockDim.x) {
                I row = p / across * stride_h + top, column = p % across * stride_w + left;
                if (row >= 0 && row < height && column >= 0 && column < width) sum += get(from[p]) * get(image[row * width + column]);
            }
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) gw[o * (I)gridDim.x + (I)blockIdx.x] = sum;
    }
}
