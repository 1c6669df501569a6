// What is done to all parameters of a model at a time: updates, the norm of their gradients, scaling these.
//
// A row of `table` is a tensor: the number of its first piece, its size, and the places of w, g and up to two arrays of memory (0: none).
// Every block takes one piece of PIECE numbers, so that a bias costs a block and a large matrix as many as it is worth. What changes from
// step to step stands in `numbers`, a row a tensor. `report`, if given, begins with 0 where a recorded step must change nothing.

#define PIECE 4096
#define COLUMNS 6
#define TOGETHER 4          // numbers of each array that a thread loads before it writes any

struct Piece {
    int tensor;
    int count;              // numbers in it
    T *w, *g, *m, *v;       // its first ones
};

__device__ inline T* moved(long long place, long long by) { return place ? (T*)place + by : (T*)0; }

__device__ inline Piece piece_of(const long long* table, I tensors, I index) {
    int low = 0, high = (int)tensors;                       // the last tensor whose first piece is not beyond index
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table[middle * COLUMNS] <= index) low = middle; else high = middle;
    }
    const long long* row = table + low * COLUMNS;
    long long start = (index - row[0]) * PIECE;
    long long left = row[1] - start;
    Piece p;
    p.tensor = low;
    p.count = left < PIECE ? (int)left : PIECE;
    p.w = moved(row[2], start);
    p.g = moved(row[3], start);
    p.m = moved(row[4], start);
    p.v = moved(row[5], start);
    return p;
}

// Calls f(number, its place) for all numbers of a piece's gradient

template <typename F> __device__ inline void each_number(Piece p, F f) {
    for (int first = threadIdx.x; first < p.count; first += TOGETHER * blockDim.x) {
        A g[TOGETHER];
        #pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            g[k] = i < p.count ? get(p.g[i]) : A(0);
        }
        #pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            if (i < p.count) f(g[k], i);
        }
    }
}

// g <- g + decay w;  v <- momentum v + g;  w <- w - lr v, or with nesterov w - lr (g + momentum v)
extern "C" __global__ void sgd(const long long* table, const A* numbers, I tensors, const double* report) {
    if (report && report[0] == 0) return;
    Piece p = piece_of(table, tensors, blockIdx.x);
    const A* row = numbers + p.tensor * 4;
    A lr = row[0], momentum = row[1], decay = row[3];
    bool nesterov = row[2] != 0;
    for (int first = threadIdx.x; first < p.count; first += TOGETHER * blockDim.x) {
        A w[TOGETHER], g[TOGETHER], v[TOGETHER];
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            if (i < p.count) {
                w[k] = get(p.w[i]);
                g[k] = get(p.g[i]);
                v[k] = p.m ? get(p.m[i]) : A(0);
            }
        }
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            if (i < p.count) {
                A step = decay != 0 ? g[k] + decay * w[k] : g[k];
                if (p.m) {
                    v[k] = momentum * v[k] + step;
                    step = nesterov ? step + momentum * v[k] : v[k];
                    p.m[i] = put<T>(v[k]);
                }
                p.w[i] = put<T>(w[k] - lr * step);
            }
        }
    }
}

// m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
// A row of numbers: what w is multiplied by first, the decay that is part of the gradient, beta1, 1 - beta1, beta2, 1 - beta2,
// 1 / sqrt(1 - beta2^t), eps, lr / (1 - beta1^t)
extern "C" __global__ void adam(const long long* table, const A* numbers, I tensors, const double* report) {
    if (report && report[0] == 0) return;
    Piece p = piece_of(table, tensors, blockIdx.x);
    const A* row = numbers + p.tensor * 9;
    A keep = row[0], decay = row[1], beta1 = row[2], rest1 = row[3], beta2 = row[4], rest2 = row[5], unbias = row[6], eps = row[7], lr = row[8];
    for (int first = threadIdx.x; first < p.count; first += TOGETHER * blockDim.x) {
        A w[TOGETHER], g[TOGETHER], m[TOGETHER], v[TOGETHER];
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            if (i < p.count) {
                w[k] = get(p.w[i]);
                g[k] = get(p.g[i]);
                m[k] = get(p.m[i]);
                v[k] = get(p.v[i]);
            }
        }
        for (int k = 0; k < TOGETHER; k++) {
            int i = first + k * blockDim.x;
            if (i < p.count) {
                A kept = keep * w[k], step = decay != 0 ? g[k] + decay * w[k] : g[k];
                m[k] = beta1 * m[k] + rest1 * step;
                v[k] = beta2 * v[k] + rest2 * step * step;
                p.m[i] = put<T>(m[k]);
                p.v[i] = put<T>(v[k]);
                p.w[i] = put<T>(kept - lr * m[k] / (sqrt(v[k]) * unbias + eps));
            }
        }
    }
}

// The sum of squares of each piece of g. Always in double: squares of large gradients fit, and the order of adding hardly shows.
extern "C" __global__ void squares(const long long* table, I tensors, double* sums) {
    Piece p = piece_of(table, tensors, blockIdx.x);
    double sum = 0;
    each_number(p, [&](double g, int) { sum += g * g; });
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// found: the norm, the factor that brings it to `most` at the most (1 where the norm is no number), and the squares of each tensor.
// One block: a warp adds up the pieces of a tensor, and all threads together the tensors.
extern "C" __global__ void clip_factor(const long long* table, I tensors, I pieces, const double* sums, A most, double* found, double* report) {
    double sum = 0;
    for (int tensor = threadIdx.x / 32; tensor < tensors; tensor += blockDim.x / 32) {
        int first = (int)table[tensor * COLUMNS], end = tensor + 1 < tensors ? (int)table[(tensor + 1) * COLUMNS] : (int)pieces;
        double part = 0;
        for (int i = first + threadIdx.x % 32; i < end; i += 32) part += sums[i];
        part = warp_sum(part);
        if (threadIdx.x % 32 == 0) {
            found[2 + tensor] = part;
            sum += part;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        double all = sqrt(sum), factor = (double)most / (all + 1e-6);
        bool number = all - all == 0;
        found[0] = all;
        found[1] = number && factor < 1 ? factor : 1.0;
        if (report && !number) report[0] = 0;
    }
}

// g <- factor g
extern "C" __global__ void scale(const long long* table, I tensors, const double* factor) {
    A by = (A)factor[0];
    if (by == 1) return;
    Piece p = piece_of(table, tensors, blockIdx.x);
    each_number(p, [&](A g, int i) { p.g[i] = put<T>(by * g); });
}

// g <- factor g, and whether all numbers are finite afterwards: one thread that finds another says so, and all who do say the same
extern "C" __global__ void unscale(const long long* table, I tensors, const A* factor, int* finite, double* report) {
    Piece p = piece_of(table, tensors, blockIdx.x);
    A by = factor[0];
    each_number(p, [&](A g, int i) {
        T rounded = put<T>(by * g);                             // may be too large for T only
        p.g[i] = rounded;
        if (!(get(rounded) - get(rounded) == 0)) {
            finite[0] = 0;
            if (report) report[0] = 0;
        }
    });
}

// a <- a (1 - rate) + x rate for the mean and the variance of every channel, whose variance counts `correction` times.
// rates: rate, where it is known on the device only
extern "C" __global__ void running(const T* mean, const T* var, const T* x_mean, const T* x_var, A rate, const double* rates, A correction,
                                   I channels, T* new_mean, T* new_var, const double* report) {
    I c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels || (report && report[0] == 0)) return;
    A by = rates ? (A)rates[0] : rate, keep = 1 - by;
    new_mean[c] = put<T>(get(mean[c]) * keep + get(x_mean[c]) * by);
    new_var[c] = put<T>(get(var[c]) * keep + get(x_var[c]) * (by * correction));
}
