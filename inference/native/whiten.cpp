// A log density in whitened coordinates z, x = loc + scale z, made from one in x: value log p(x), gradient scale^T g(x).
// The constant log |det scale| is left out, so that the value stays the log density of x.
#include <cstdint>
#include <new>
#include <vector>

typedef int64_t LogDensity(uint64_t dim, const double* point, double* gradient, double* value, void* data);

struct Whitened {
    LogDensity* inner;
    void* data;
    const double* loc;
    const double* scale;       // (dim, dim), lower triangular, by rows; or (dim,)
    const double* transposed;  // the same by columns; null where the scale is diagonal
};

static double dot(const double* a, const double* b, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// nutpie's signature; positive codes, which end a trajectory, are passed on.
extern "C" __attribute__((visibility("default")))
int64_t ppl_whitened(uint64_t dim, const double* z, double* gradient, double* value, void* whitened) {
    const Whitened& w = *(const Whitened*)whitened;
    const int64_t n = (int64_t)dim;
    static thread_local std::vector<double> memory;  // of the longest vector that this thread has seen
    try {
        if (memory.size() < dim) memory.resize(dim);
    } catch (const std::bad_alloc&) {
        return -1;
    }
    double* x = memory.data();
    if (w.transposed)
        for (int64_t i = 0; i < n; i++) x[i] = w.loc[i] + dot(w.scale + i * n, z, i + 1);
    else
        for (int64_t i = 0; i < n; i++) x[i] = w.loc[i] + w.scale[i] * z[i];
    const int64_t failed = w.inner(dim, x, gradient, value, w.data);
    if (failed) return failed;
    if (w.transposed)  // in place: component i needs those from i on
        for (int64_t i = 0; i < n; i++) gradient[i] = dot(w.transposed + i * n + i, gradient + i, n - i);
    else
        for (int64_t i = 0; i < n; i++) gradient[i] *= w.scale[i];
    return 0;
}
