// Patches as columns, and back. A thread has a position of an image, and walks over the places of the filter: neighbouring threads read
// neighbouring numbers, and what a filter sees twice comes out of the cache.

#include "packs.cuh"

// Number k of the patch at position p of image n goes to n image_step + k row_step + p. first, positions: the part of an image's
// positions that is asked for. start, channels: the part of its `all` channels. ones: whether a 1 ends every patch: what a bias sees.

extern "C" __global__ void __launch_bounds__(256) im2col(
    const T *x, T *columns, I images, I image_step, I row_step, I first, I positions, I ones, I all, I start, I channels, I height,
    I width, I across, I kernel_h, I kernel_w, I stride_h, I stride_w, I padding_h, I padding_w, I dilation_h, I dilation_w) {
    I p = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (p >= positions) return;
    I top = (first + p) / across * stride_h - padding_h, left = (first + p) % across * stride_w - padding_w;
    for (I n = (I)blockIdx.z; n < images; n += (I)gridDim.z)
        for (I c = (I)blockIdx.y; c < channels; c += (I)gridDim.y) {
            const T *image = x + (n * all + start + c) * height * width;
            T *to = columns + n * image_step + c * kernel_h * kernel_w * row_step + p;
            for (I i = 0; i < kernel_h; i++)
                for (I j = 0; j < kernel_w; j++, to += row_step) {
                    I row = top + i * dilation_h, column = left + j * dilation_w;
                    *to = row >= 0 && row < height && column >= 0 && column < width ? image[row * width + column] : T{};
                }
            if (ones && c == 0) columns[n * image_step + channels * kernel_h * kernel_w * row_step + p] = put<T>(1);
        }
}

// The way back, in gather form: a number of the image is the sum of all the numbers of columns that were read from it, in a fixed order.
// columns: (images, channels * kernel_h * kernel_w, down * across), of a part of gx's channels; they are not rounded to 16 bits.

extern "C" __global__ void __launch_bounds__(256) col2im(
    const A *columns, T *gx, I images, I all, I start, I channels, I height, I width, I down, I across, I kernel_h, I kernel_w, I padding_h,
    I padding_w, I dilation_h, I dilation_w, I stride_h, unsigned stride_h_m, I stride_h_s, I stride_w, unsigned stride_w_m, I stride_w_s) {
    I place = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x;
    if (place >= height * width) return;
    I row = place / width + padding_h, column = place % width + padding_w;
    Divisor by_stride_h{stride_h, stride_h_m, stride_h_s}, by_stride_w{stride_w, stride_w_m, stride_w_s};
    for (I n = (I)blockIdx.z; n < images; n += (I)gridDim.z)
        for (I c = (I)blockIdx.y; c < channels; c += (I)gridDim.y) {
            const A *from = columns + (n * channels + c) * kernel_h * kernel_w * down * across;
            A sum = 0;
            for (I i = 0; i < kernel_h; i++) {
                I above = row - i * dilation_h;
                if (above < 0) continue;
                I r = above / by_stride_h;
                if (r * stride_h != above || r >= down) continue;
                for (I j = 0; j < kernel_w; j++) {
                    I before = column - j * dilation_w;
                    if (before < 0) continue;
                    I q = before / by_stride_w;
                    if (q * stride_w != before || q >= across) continue;
                    sum += from[((i * kernel_w + j) * down + r) * across + q];
                }
            }
            gx[(n * all + start + c) * height * width + place] = put<T>(sum);
        }
}
