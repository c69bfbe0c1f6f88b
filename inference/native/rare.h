// Functions that few models need, included where one does; see expressions.py.

// Division and remainder as torch rounds them; integers divided by zero, which torch refuses, give 0 and do not trap.
template <class T> static T ppl_fmod(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return std::fmod(a, b);
    else return b == 0 || b == T(-1) ? T(0) : a % b;
}
template <class T> static T ppl_remainder(T a, T b) {
    T r = ppl_fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <class T> static T ppl_div_trunc(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return std::trunc(a / b);
    else return b == 0 ? T(0) : b == T(-1) ? -a : a / b;
}
template <class T> static T ppl_div_floor(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) {
        if (b == 0) return a / b;
        T r = std::fmod(a, b), whole = (a - r) / b;
        if (r != 0 && (b < 0) != (r < 0)) whole -= T(1);
        T down = std::floor(whole);
        return whole - down > T(0.5) ? down + T(1) : down;
    } else {
        T whole = ppl_div_trunc(a, b);
        return b != 0 && whole * b != a && (a < 0) != (b < 0) ? whole - 1 : whole;
    }
}

// The derivative of digamma: reflection below zero, recurrence up to 10, then its asymptotic series.
static double ppl_trigamma(double x) {
    double sign = 1.0, sum = 0.0;
    if (x < 0.5) {
        double s = std::sin(M_PI * (x - std::nearbyint(x)));
        sum = -(M_PI / s) * (M_PI / s);
        sign = -1.0;
        x = 1.0 - x;
    }
    for (; x < 10.0; x += 1.0) sum += 1.0 / (x * x);
    double z = 1.0 / (x * x);
    double tail = z * (1.0 / 6 - z * (1.0 / 30 - z * (1.0 / 42 - z * (1.0 / 30 - z * (5.0 / 66
                  - z * (691.0 / 2730 - z * (7.0 / 6)))))));
    return sign * (sum + (1.0 + 0.5 / x + tail) / x);
}

// exp(x^2) erfc(x): with what rounding takes from x^2 up to 25, by its asymptotic series from there on.
static double ppl_special_erfcx(double x) {
    if (x < -27.0) return HUGE_VAL;
    if (x < 25.0) {
        double square = x * x, lost = __builtin_fma(x, x, -square);
        return std::exp(square) * std::erfc(x) * (1.0 + lost);
    }
    double z = 0.5 / (x * x);
    return 0.5641895835477563 / x * (1.0 - z * (1.0 - z * (3.0 - z * (15.0 - z * (105.0 - z * 945.0)))));
}

// The inverse of erf: a first guess (Winitzki 2008), then Halley's steps, with erfc where erf is near one.
static double ppl_erfinv(double x) {
    double size = std::fabs(x);
    if (!(size < 1.0)) return size == 1.0 ? std::copysign(HUGE_VAL, x) : __builtin_nan("");
    double w = std::log1p(-x * x), b = 4.330746750799873 + 0.5 * w;  // 2 / (pi a) with a = 0.147
    double y = std::sqrt(std::sqrt(b * b - w / 0.147) - b);
    for (int i = 0; i < 3; i++) {
        double off = size < 0.5 ? std::erf(y) - size : (1.0 - size) - std::erfc(y);
        double step = off * 0.8862269254527580 * std::exp(y * y);
        y -= step / (1.0 + y * step);
    }
    return std::copysign(y, x);
}

// Inverses of matrices (batch, n, n) by Gauss and Jordan's elimination with row pivots; all NaN where one is singular.
template <int64_t batch, int64_t n, class T> static void inverse(const T* a, T* out) {
    std::memcpy(out, a, sizeof(T) * batch * n * n);
    for (int64_t s = 0; s < batch; s++, out += n * n) {
        int64_t from[n];
        bool failed = false;
        for (int64_t k = 0; k < n && !failed; k++) {
            int64_t p = k;
            for (int64_t i = k + 1; i < n; i++) if (std::fabs(out[i * n + k]) > std::fabs(out[p * n + k])) p = i;
            from[k] = p;
            failed = !(std::fabs(out[p * n + k]) > 0);
            if (p != k) for (int64_t j = 0; j < n; j++) { T t = out[k * n + j]; out[k * n + j] = out[p * n + j]; out[p * n + j] = t; }
            T* row = out + k * n;
            T pivot = row[k];
            row[k] = 1;
            for (int64_t j = 0; j < n; j++) row[j] /= pivot;
            for (int64_t i = 0; i < n; i++) {
                if (i == k) continue;
                T factor = out[i * n + k];
                out[i * n + k] = 0;
                for (int64_t j = 0; j < n; j++) out[i * n + j] -= factor * row[j];
            }
        }
        for (int64_t k = n - 1; k >= 0 && !failed; k--)
            if (from[k] != k) for (int64_t i = 0; i < n; i++) { T t = out[i * n + k]; out[i * n + k] = out[i * n + from[k]]; out[i * n + from[k]] = t; }
        if (failed) for (int64_t i = 0; i < n * n; i++) out[i] = (T)__builtin_nan("");
    }
}
