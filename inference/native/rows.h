// Products with tall matrices, by rows from <= i < to: loops over the same rows run together, a block at a time.

// out[i] = sum_j a[i * step + j] x[j] for rows from <= i < to; rows are read once, four at a time
template <int64_t n, class T>
static void dot_rows(const T* __restrict a, int64_t step, const T* __restrict x, T* __restrict out, int64_t from, int64_t to) {
    typedef typename Lanes<T>::type V;
    constexpr int64_t whole = n / 8 * 8;
    int64_t i = from;
    for (; i + 4 <= to; i += 4) {
        const T *a0 = a + i * step, *a1 = a0 + step, *a2 = a1 + step, *a3 = a2 + step;
        V s0 = {}, s1 = {}, s2 = {}, s3 = {};
        for (int64_t j = 0; j < whole; j += 8) {
            V v = *(const V*)(x + j);
            s0 += *(const V*)(a0 + j) * v; s1 += *(const V*)(a1 + j) * v;
            s2 += *(const V*)(a2 + j) * v; s3 += *(const V*)(a3 + j) * v;
        }
        T t0 = 0, t1 = 0, t2 = 0, t3 = 0;
        for (int64_t j = whole; j < n; j++) {
            t0 += a0[j] * x[j]; t1 += a1[j] * x[j]; t2 += a2[j] * x[j]; t3 += a3[j] * x[j];
        }
        out[i] = t0 + (((s0[0] + s0[4]) + (s0[1] + s0[5])) + ((s0[2] + s0[6]) + (s0[3] + s0[7])));
        out[i + 1] = t1 + (((s1[0] + s1[4]) + (s1[1] + s1[5])) + ((s1[2] + s1[6]) + (s1[3] + s1[7])));
        out[i + 2] = t2 + (((s2[0] + s2[4]) + (s2[1] + s2[5])) + ((s2[2] + s2[6]) + (s2[3] + s2[7])));
        out[i + 3] = t3 + (((s3[0] + s3[4]) + (s3[1] + s3[5])) + ((s3[2] + s3[6]) + (s3[3] + s3[7])));
    }
    for (; i < to; i++) {
        const T* row = a + i * step;
        T t = 0;
        for (int64_t j = 0; j < n; j++) t += row[j] * x[j];
        out[i] = t;
    }
}

// out[j] += sum over rows of a[i * step + j] x[i]; up to 64 columns at a time are summed in registers
template <int64_t n, int64_t begin = 0, class T>
static void add_rows(const T* __restrict a, int64_t step, const T* __restrict x, T* __restrict out, int64_t from, int64_t to) {
    typedef typename Lanes<T>::type V;
    constexpr int64_t left = n - begin, take = left > 64 ? 64 : left, vectors = take / 8, rest = take % 8;
    V s[vectors ? vectors : 1] = {}, u[vectors ? vectors : 1] = {};
    T t[8] = {};
    const T* row = a + from * step + begin;
    int64_t i = from;
    for (; i + 2 <= to; i += 2, row += 2 * step) {
        const T* next = row + step;
        for (int64_t v = 0; v < vectors; v++) { s[v] += *(const V*)(row + 8 * v) * x[i]; u[v] += *(const V*)(next + 8 * v) * x[i + 1]; }
        for (int64_t j = 0; j < rest; j++) t[j] += row[8 * vectors + j] * x[i] + next[8 * vectors + j] * x[i + 1];
    }
    if (i < to) {
        for (int64_t v = 0; v < vectors; v++) s[v] += *(const V*)(row + 8 * v) * x[i];
        for (int64_t j = 0; j < rest; j++) t[j] += row[8 * vectors + j] * x[i];
    }
    for (int64_t v = 0; v < vectors; v++) { V* o = (V*)(out + begin + 8 * v); *o += s[v] + u[v]; }
    for (int64_t j = 0; j < rest; j++) out[begin + 8 * vectors + j] += t[j];
    if constexpr (left > 64) add_rows<n, begin + 64>(a, step, x, out, from, to);
}

// out[j * apart + i] = sum_l a[i * step + l] b[l * n + j] for rows from <= i < to of a tall matrix, which is read once
// for eight columns of b; these lie in the order in which they are needed, with zeros after the last.
template <int64_t k, int64_t n, class T>
static void product_rows(const T* __restrict a, int64_t step, const T* __restrict b, T* __restrict out, int64_t apart,
                         int64_t from, int64_t to) {
    typedef typename Lanes<T>::type V;
    alignas(64) T panel[k * 8];
    for (int64_t first = 0; first < n; first += 8) {
        const int64_t width = n - first < 8 ? n - first : 8;
        for (int64_t l = 0; l < k; l++)
            for (int64_t j = 0; j < 8; j++) panel[l * 8 + j] = j < width ? b[l * n + first + j] : T(0);
        T* __restrict o = out + first * apart;
        int64_t i = from;
        for (; i + 8 <= to; i += 8) {
            V s[8] = {};
            const T* row = a + i * step;
            for (int64_t l = 0; l < k; l++) {
                V v = *(const V*)(panel + l * 8);
                for (int r = 0; r < 8; r++) s[r] += row[r * step + l] * v;
            }
            alignas(64) T square[64];
            for (int r = 0; r < 8; r++) *(V*)(square + 8 * r) = s[r];
            for (int64_t j = 0; j < width; j++)
                for (int r = 0; r < 8; r++) o[j * apart + i + r] = square[8 * r + j];
        }
        for (; i < to; i++) {
            V s = {};
            for (int64_t l = 0; l < k; l++) s += a[i * step + l] * *(const V*)(panel + l * 8);
            for (int64_t j = 0; j < width; j++) o[j * apart + i] = s[j];
        }
    }
}

// out[j * k + l] += sum over rows of x[i * down + j * apart] a[i * step + l], for `some` of the j and `take` of the l,
// whose sums stay in registers. The last vector of a row overlaps the one before it, so that none reaches past the row.
template <int64_t k, int64_t some, int64_t take, class T>
static void add_some_products(const T* __restrict a, int64_t step, const T* __restrict x, int64_t down, int64_t apart,
                              T* __restrict out, int64_t from, int64_t to) {
    typedef typename Lanes<T>::type V;
    if constexpr (take < 8) {
        T s[some][take] = {};
        for (int64_t i = from; i < to; i++)
            for (int64_t j = 0; j < some; j++)
                for (int64_t l = 0; l < take; l++) s[j][l] += x[i * down + j * apart] * a[i * step + l];
        for (int64_t j = 0; j < some; j++)
            for (int64_t l = 0; l < take; l++) out[j * k + l] += s[j][l];
    } else {
        constexpr int64_t vectors = (take + 7) / 8, last = take - 8;
        V s[some][vectors] = {};
        for (int64_t i = from; i < to; i++) {
            V row[vectors];
            for (int64_t v = 0; v < vectors; v++) row[v] = *(const V*)(a + i * step + (8 * v < last ? 8 * v : last));
            for (int64_t j = 0; j < some; j++)
                for (int64_t v = 0; v < vectors; v++) s[j][v] += x[i * down + j * apart] * row[v];
        }
        for (int64_t j = 0; j < some; j++)
            for (int64_t l = 0; l < take; l++) {
                const int64_t v = l / 8, begin = 8 * v < last ? 8 * v : last;
                out[j * k + l] += s[j][v][l - begin];
            }
    }
}

// The same for all n of the j and all k of the l: as many sums at a time as there are registers for.
template <int64_t k, int64_t n, int64_t begin = 0, class T>
static void add_product_rows(const T* __restrict a, int64_t step, const T* __restrict x, int64_t down, int64_t apart,
                             T* __restrict out, int64_t from, int64_t to) {
    constexpr int64_t left = k - begin, take = left <= 48 ? left : left < 56 ? 40 : 48;  // none under 8 is left over
    constexpr int64_t room = 24 / ((take + 7) / 8), some = room < 8 ? room : 8;
    int64_t j = 0;
    for (; j + some <= n; j += some)
        add_some_products<k, some, take>(a + begin, step, x + j * apart, down, apart, out + j * k + begin, from, to);
    if constexpr (n % some)
        add_some_products<k, n % some, take>(a + begin, step, x + j * apart, down, apart, out + j * k + begin, from, to);
    if constexpr (left > take) add_product_rows<k, n, begin + take>(a, step, x, down, apart, out, from, to);
}
