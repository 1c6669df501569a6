// Images before they reach a model.

// y[n, c, i, j] = x[n, c, i + top - padding, j + left - padding] where that is inside of x, else fill; (top, left) = corners[n].
extern "C" __global__ void windows(const T* x, const long long* corners, T* y, I count, I c, I h, I w, I oh, I ow, I padding, A fill) {
    for (I at = (I)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (I)gridDim.x * blockDim.x) {
        I plane = at / (oh * ow), i = at / ow % oh, j = at % ow;
        I row = i + (I)corners[2 * (plane / c)] - padding, column = j + (I)corners[2 * (plane / c) + 1] - padding;
        bool inside = row >= 0 && row < h && column >= 0 && column < w;
        y[at] = inside ? x[(plane * h + row) * w + column] : put<T>(fill);
    }
}
