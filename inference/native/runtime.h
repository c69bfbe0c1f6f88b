// What generated code calls: vectorisable elementary functions, scans, and small dense linear algebra.
// Self-contained, so that a model compiles in about a second. `real` is double or float.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#define INLINE static inline __attribute__((always_inline))

// ---- elementary functions without branches, so that loops over them use the vector unit; errors are below 2 ulp, of
// tanh below 3; see tests/test_native_functions.py ----

INLINE double bits_to_double(int64_t i) { double d; std::memcpy(&d, &i, 8); return d; }
INLINE int64_t double_to_bits(double d) { int64_t i; std::memcpy(&i, &d, 8); return i; }

// x = k log(2) + r with |r| <= log(2)/2; gives exp(r) - 1 by its series, and 2^k in two factors (k may exceed 1023).
INLINE double expm1_reduced(double x, double& scale1, double& scale2) {
    const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    double t = x * 1.4426950408889634 + shift;
    double k = t - shift;
    double r = __builtin_fma(k, -0.693147180369123816490, x);
    r = __builtin_fma(k, -1.90821492927058770002e-10, r);
    int64_t n = double_to_bits(t) - double_to_bits(shift);
    int64_t half = (int64_t)((uint64_t)(n + 8192) >> 1) - 4096;
    scale1 = bits_to_double((half + 1023) << 52);
    scale2 = bits_to_double((n - half + 1023) << 52);
    double p = 1.0 / 6227020800.0;
    p = __builtin_fma(p, r, 1.0 / 479001600.0);
    p = __builtin_fma(p, r, 1.0 / 39916800.0);
    p = __builtin_fma(p, r, 1.0 / 3628800.0);
    p = __builtin_fma(p, r, 1.0 / 362880.0);
    p = __builtin_fma(p, r, 1.0 / 40320.0);
    p = __builtin_fma(p, r, 1.0 / 5040.0);
    p = __builtin_fma(p, r, 1.0 / 720.0);
    p = __builtin_fma(p, r, 1.0 / 120.0);
    p = __builtin_fma(p, r, 1.0 / 24.0);
    p = __builtin_fma(p, r, 1.0 / 6.0);
    p = __builtin_fma(p, r, 0.5);
    return __builtin_fma(p * r, r, r);
}

INLINE double clamped_for_exp(double x) {  // keeps NaN
    x = x > 710.0 ? 710.0 : x;
    return x < -746.0 ? -746.0 : x;
}

INLINE double ppl_exp(double x) {
    double a, b, m = expm1_reduced(clamped_for_exp(x), a, b);
    return ((m + 1.0) * a) * b;
}

INLINE double ppl_expm1(double x) {
    double a, b, m = expm1_reduced(clamped_for_exp(x), a, b);
    double s = a * b;                       // infinite from x = 709.8 on, where 2^k alone overflows
    double big = ((m + 1.0) * a) * b;
    double r = __builtin_fma(s, m, s - 1.0);
    r = x > 700.0 ? big : r;
    return x == 0.0 ? x : r;
}

// log(1 + f) of a mantissa in [sqrt(1/2), sqrt(2)] as 2 atanh(f / (2 + f)), by its series
INLINE double log_mantissa(double f) {
    double s = f / (2.0 + f), z = s * s;
    double p = 1.0 / 23.0;
    p = __builtin_fma(p, z, 1.0 / 21.0);
    p = __builtin_fma(p, z, 1.0 / 19.0);
    p = __builtin_fma(p, z, 1.0 / 17.0);
    p = __builtin_fma(p, z, 1.0 / 15.0);
    p = __builtin_fma(p, z, 1.0 / 13.0);
    p = __builtin_fma(p, z, 1.0 / 11.0);
    p = __builtin_fma(p, z, 1.0 / 9.0);
    p = __builtin_fma(p, z, 1.0 / 7.0);
    p = __builtin_fma(p, z, 1.0 / 5.0);
    p = __builtin_fma(p, z, 1.0 / 3.0);
    // f - s f = 2 s exactly in the reals; this order keeps the error of s out of the leading term
    return f - s * (f - 2.0 * z * p);
}

INLINE double ppl_log(double x) {
    bool tiny = x < 2.2250738585072014e-308;
    double y = tiny ? x * 18014398509481984.0 : x;  // 2^54: denormal numbers
    int64_t i = double_to_bits(y) + 0x0009'5f62'0000'0000;  // so that the mantissa starts at sqrt(1/2)
    int64_t e = (int64_t)((uint64_t)i >> 52) - 1023;
    double m = bits_to_double((i & 0x000f'ffff'ffff'ffff) - 0x0009'5f62'0000'0000 + 0x3ff0'0000'0000'0000);
    double k = (double)(int32_t)(e - (tiny ? 54 : 0));
    double r = log_mantissa(m - 1.0);
    r = __builtin_fma(k, 1.90821492927058770002e-10, r);
    r = __builtin_fma(k, 0.693147180369123816490, r);
    r = x == 0.0 ? -HUGE_VAL : r;
    r = x > 1.7976931348623157e308 ? x : r;
    return x >= 0.0 ? r : __builtin_nan("");
}

INLINE double ppl_log1p(double x) {
    double u = 1.0 + x;
    double lost = x - (u - 1.0);  // what rounding u took away
    double r = ppl_log(u) + lost / u;
    r = u == 1.0 ? x : r;
    r = x > 1e300 ? ppl_log(x) : r;
    return x == -1.0 ? -HUGE_VAL : r;
}

INLINE double ppl_tanh(double x) {
    double a = x < 0 ? -x : x;
    a = a > 20.0 ? 20.0 : a;
    double t = ppl_expm1(2.0 * a);
    double r = t / (t + 2.0);
    return x < 0 ? -r : r;
}

INLINE double ppl_sigmoid(double x) { return 1.0 / (1.0 + ppl_exp(-x)); }
INLINE double ppl_sqrt(double x) { return __builtin_sqrt(x); }
INLINE double ppl_abs(double x) { return __builtin_fabs(x); }

// ---- functions that are rarely the inner loop of a model ----

static double ppl_digamma(double x) {
    if (x == 0.0) return std::copysign(HUGE_VAL, -x);
    double shift = 0.0;
    if (x < 0.0) {
        if (x == std::floor(x)) return __builtin_nan("");
        shift = -M_PI / std::tan(M_PI * (x - std::nearbyint(x)));
        x = 1.0 - x;
    }
    while (x < 10.0) { shift -= 1.0 / x; x += 1.0; }
    double z = 1.0 / (x * x);
    double tail = z * (1.0 / 12 - z * (1.0 / 120 - z * (1.0 / 252 - z * (1.0 / 240 - z * (1.0 / 132
                  - z * (691.0 / 32760 - z * (1.0 / 12)))))));
    return shift + std::log(x) - 0.5 / x - tail;
}

static double ppl_lgamma(double x) {
    int sign;  // lgamma_r: lgamma writes a global
#if defined(__GLIBC__) || defined(__APPLE__)
    return lgamma_r(x, &sign);
#else
    (void)sign;
    return std::lgamma(x);
#endif
}

// Both for positive numbers, by shifting them to 8 or more, where Stirling's series has its full accuracy.
INLINE double lgamma_of_positive(double x) {
    double p = x;
    for (int i = 1; i < 8; i++) p *= x + i;
    double y = x < 8.0 ? x + 8.0 : x, r = 1.0 / y, z = r * r;
    double tail = -691.0 / 360360.0 + z * (1.0 / 156.0 - z * (3617.0 / 122400.0));
    tail = r * (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z * (1.0 / 1680.0 - z * (1.0 / 1188.0 + z * tail)))));
    double value = (y - 0.5) * ppl_log(y) - y + 0.91893853320467274178 + tail;
    value = x < 8.0 ? value - ppl_log(p) : value;
    return x > 1.7976931348623157e308 ? x : value;
}

INLINE double digamma_of_positive(double x) {
    double p = x, q = 1.0;  // the product x (x + 1) ... (x + 7) and its derivative
    for (int i = 1; i < 8; i++) { q = q * (x + i) + p; p *= x + i; }
    double y = x < 8.0 ? x + 8.0 : x, r = 1.0 / y, z = r * r;
    double tail = 691.0 / 32760.0 - z * (1.0 / 12.0 - z * (3617.0 / 8160.0));
    tail = z * (1.0 / 12.0 - z * (1.0 / 120.0 - z * (1.0 / 252.0 - z * (1.0 / 240.0 - z * (1.0 / 132.0 - z * tail)))));
    double value = ppl_log(y) - 0.5 * r - tail;
    return x < 8.0 ? value - q / p : value;
}

#define ALL(name)                                                                                  \
    template <int64_t n, class T> static void name##_all(const T* __restrict x, T* __restrict out) { \
        int64_t rest = 0;                                                                          \
        _Pragma("omp simd reduction(+ : rest)") for (int64_t i = 0; i < n; i++) {                  \
            out[i] = (T)name##_of_positive(x[i]);                                                  \
            rest += x[i] > 0 ? 0 : 1;                                                              \
        }                                                                                          \
        if (rest) for (int64_t i = 0; i < n; i++) if (!(x[i] > 0)) out[i] = (T)ppl_##name(x[i]);   \
    }
ALL(lgamma) ALL(digamma)

INLINE double ppl_xlogy(double x, double y) { return y != y ? y : (x == 0.0 ? 0.0 : x * ppl_log(y)); }

// For the few elements that are computed one by one: called, not copied into place, which halves the time to compile.
#define ONE(name) static __attribute__((noinline)) double name##_one(double x) { return name(x); }
ONE(ppl_exp) ONE(ppl_expm1) ONE(ppl_log) ONE(ppl_log1p) ONE(ppl_tanh) ONE(ppl_sigmoid)

// The number types that generated code uses; single precision goes through double, which costs little and is exact.
template <class T> INLINE T ppl_max(T a, T b) { return (b > a || b != b) ? b : a; }   // NaN is passed on
template <class T> INLINE T ppl_min(T a, T b) { return (b < a || b != b) ? b : a; }
template <class T> INLINE T ppl_sign(T a) { return T((a > 0) - (a < 0)); }  // 0 for NaN, as in torch
INLINE int64_t ppl_wrap(int64_t i, int64_t n) { return i < 0 ? i + n : i; }
INLINE double ppl_round(double x) { return std::nearbyint(x); }  // half to even, as torch rounds

// ---- scratch memory of a thread, given back when the thread ends ----

struct Scratch {
    char* memory = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(memory); }
    char* get(size_t bytes) {
        if (!memory || bytes > size) {
            std::free(memory);
            memory = (char*)std::aligned_alloc(64, (bytes + 64) / 64 * 64);
            size = memory ? bytes : 0;
        }
        return memory;
    }
};

// ---- scans and dense linear algebra, row-major, sizes known to the compiler ----

template <int64_t outer, int64_t n, int64_t inner, class T> static void cumsum(const T* x, T* out) {
    for (int64_t o = 0; o < outer; o++) {
        const T* a = x + o * n * inner; T* b = out + o * n * inner;
        for (int64_t j = 0; j < inner; j++) b[j] = a[j];
        for (int64_t i = 1; i < n; i++)
            for (int64_t j = 0; j < inner; j++) b[i * inner + j] = b[(i - 1) * inner + j] + a[i * inner + j];
    }
}

template <int64_t outer, int64_t n, int64_t inner, class T> static void cumprod(const T* x, T* out) {
    for (int64_t o = 0; o < outer; o++) {
        const T* a = x + o * n * inner; T* b = out + o * n * inner;
        for (int64_t j = 0; j < inner; j++) b[j] = a[j];
        for (int64_t i = 1; i < n; i++)
            for (int64_t j = 0; j < inner; j++) b[i * inner + j] = b[(i - 1) * inner + j] * a[i * inner + j];
    }
}

// The first place of an extreme along the middle dim; NaN counts as extreme, as in torch.
template <int64_t outer, int64_t n, int64_t inner, bool largest, class T> static void place_of_extreme(const T* x, int64_t* out) {
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < inner; j++) {
            const T* a = x + o * n * inner + j;
            int64_t best = 0;
            for (int64_t i = 1; i < n; i++) {
                T have = a[best * inner], here = a[i * inner];
                if (have == have && (here != here || (largest ? here > have : here < have))) best = i;
            }
            out[o * inner + j] = best;
        }
}
template <int64_t outer, int64_t n, int64_t inner, class T> static void argmax(const T* x, int64_t* out) {
    place_of_extreme<outer, n, inner, true>(x, out);
}
template <int64_t outer, int64_t n, int64_t inner, class T> static void argmin(const T* x, int64_t* out) {
    place_of_extreme<outer, n, inner, false>(x, out);
}

// A vector of eight numbers, whatever width the machine has; loads need no alignment.
template <class T> struct Lanes { typedef T type __attribute__((vector_size(8 * sizeof(T)), aligned(sizeof(T)))); };

// Adds sum_l a[l * step] b[l * n + j] for l < k to `rows` rows of sums over `width` vectors of eight columns, which stay
// in registers: one load for several products.
template <int rows, int width, class T>
INLINE void add_products(const T* a, int64_t row_step, int64_t step, const T* b, int64_t n, int64_t k,
                         typename Lanes<T>::type (&sum)[rows][width]) {
    typedef typename Lanes<T>::type V;
    for (int64_t l = 0; l < k; l++) {
        V load[width];
        for (int w = 0; w < width; w++) load[w] = *(const V*)(b + l * n + 8 * w);
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < width; w++) sum[r][w] += a[r * row_step + l * step] * load[w];
    }
}

// out (m, n) = a (m, k) b (k, n)
template <int64_t m, int64_t k, int64_t n, class T>
static void matmul(const T* __restrict a, const T* __restrict b, T* __restrict out) {
    typedef typename Lanes<T>::type V;
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
        int64_t i = 0;
        for (; i + 4 <= m; i += 4) {
            V sum[4][2] = {};
            add_products<4, 2>(a + i * k, k, 1, b + j, n, k, sum);
            for (int r = 0; r < 4; r++)
                for (int w = 0; w < 2; w++) *(V*)(out + (i + r) * n + j + 8 * w) = sum[r][w];
        }
        for (; i < m; i++) {
            V sum[1][2] = {};
            add_products<1, 2>(a + i * k, k, 1, b + j, n, k, sum);
            for (int w = 0; w < 2; w++) *(V*)(out + i * n + j + 8 * w) = sum[0][w];
        }
    }
    for (; j + 8 <= n; j += 8)
        for (int64_t i = 0; i < m; i++) {
            V sum[1][1] = {};
            add_products<1, 1>(a + i * k, k, 1, b + j, n, k, sum);
            *(V*)(out + i * n + j) = sum[0][0];
        }
    for (; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            T sum = 0;
            for (int64_t l = 0; l < k; l++) sum += a[i * k + l] * b[l * n + j];
            out[i * n + j] = sum;
        }
}

// lower Cholesky factors of matrices (batch, n, n); all NaN where one is not positive definite
template <int64_t batch, int64_t n, class T> static void cholesky(const T* a, T* out) {
    for (int64_t s = 0; s < batch; s++, a += n * n, out += n * n) {
        bool failed = false;
        for (int64_t i = 0; i < n && !failed; i++) {
            T* li = out + i * n;
            for (int64_t j = 0; j <= i; j++) {
                const T* lj = out + j * n;
                T sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t l = 0; l < j; l++) sum += li[l] * lj[l];
                T rest = a[i * n + j] - sum;
                if (i == j) {
                    if (!(rest > 0)) { failed = true; break; }
                    li[i] = std::sqrt(rest);
                } else {
                    li[j] = rest / lj[j];
                }
            }
            for (int64_t j = i + 1; j < n; j++) li[j] = 0;
        }
        if (failed) for (int64_t i = 0; i < n * n; i++) out[i] = (T)__builtin_nan("");
    }
}

// x (batch, n, m) with a x = b for triangular a (batch, n, n)
template <int64_t batch, int64_t n, int64_t m, int upper, int unit, class T>
static void solve_triangular(const T* a, const T* b, T* out) {
    typedef typename Lanes<T>::type V;
    std::memcpy(out, b, sizeof(T) * batch * n * m);
    for (int64_t s = 0; s < batch; s++, a += n * n, out += n * m)
        for (int64_t step = 0; step < n; step++) {
            int64_t i = upper ? n - 1 - step : step;
            int64_t from = upper ? i + 1 : 0, count = upper ? n - 1 - i : i;
            const T *row = a + i * n + from, *known = out + from * m;
            T scale = unit ? T(1) : T(1) / row[i - from];
            T* x = out + i * m;
            int64_t j = 0;
            if constexpr (m == 1) {
                T sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t l = 0; l < count; l++) sum += row[l] * known[l];
                x[0] = (x[0] - sum) * scale;
                continue;
            }
            for (; j + 32 <= m; j += 32) {
                V sum[1][4] = {};
                add_products<1, 4>(row, 0, 1, known + j, m, count, sum);
                for (int w = 0; w < 4; w++) { V* o = (V*)(x + j + 8 * w); *o = (*o - sum[0][w]) * scale; }
            }
            for (; j + 8 <= m; j += 8) {
                V sum[1][1] = {};
                add_products<1, 1>(row, 0, 1, known + j, m, count, sum);
                V* o = (V*)(x + j);
                *o = (*o - sum[0][0]) * scale;
            }
            for (; j < m; j++) {
                T sum = 0;
                for (int64_t l = 0; l < count; l++) sum += row[l] * known[l * m + j];
                x[j] = (x[j] - sum) * scale;
            }
        }
}
