// What a step tells of itself: how many answers were right, and, where it is recorded, the numbers that the host reads after a replay.
//
// Macros beside those of all files: L, the type of labels.

#ifndef L
#define L long long
#endif

// How often the first of the largest numbers of a row is where the label says; a NaN is the largest of all. One block, a warp a row.
extern "C" __global__ void right_answers(const T* x, const L* labels, I rows, I classes, long long* count) {
    long long right = 0;
    int lane = threadIdx.x % 32;
    for (I row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
        A best = 0;
        I at = classes;                                     // nothing yet
        for (I c = lane; c < classes; c += 32) {
            A v = get(x[row * classes + c]);
            if (at == classes || v > best || (v != v && best == best)) {
                best = v;
                at = c;
            }
        }
        for (int by = 16; by > 0; by /= 2) {
            A other = __shfl_xor_sync(0xffffffffu, best, by);
            I place = __shfl_xor_sync(0xffffffffu, at, by);
            bool same = other == best || (other != other && best != best);
            bool larger = other > best || (other != other && best == best);
            if (place < classes && (at == classes || larger || (same && place < at))) {
                best = other;
                at = place;
            }
        }
        if (lane == 0 && labels[row] == (L)at) right++;
    }
    right = block_sum(right);
    if (threadIdx.x == 0) count[0] = right;
}

// The sum of all numbers, times a factor, by one block: every thread adds up its own, always the same ones
extern "C" __global__ void scaled_sum(const T* x, I size, A factor, T* y) {
    A sum = 0;
    for (I i = threadIdx.x; i < size; i += blockDim.x) sum += get(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[0] = put<T>(sum * factor);
}

// A loss, which must be finite for the step to change anything, and the right answers beside it, at a place of the report
extern "C" __global__ void tell(const T* loss, const long long* right, I place, double* report) {
    double value = get(loss[0]);
    report[place] = value;
    report[place + 1] = right ? (double)right[0] : 0.0;
    if (place == 1) report[0] = 1;                          // the first one of the step
    if (!(value - value == 0)) report[0] = 0;
}
