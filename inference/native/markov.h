// Hidden Markov chains: the logarithm of the sum over all paths of hidden states, and its gradients, by the forward and
// backward recursions (Rabiner 1989), in O(steps states^2). To be included after runtime.h; see inference/markov.py.
//
//   value = log sum_{k_0 ... k_steps} exp(initial[k_0] + sum_t transition[t][k_{t-1}][k_t] + observation[t][k_t])
//
// Row-major: initial (batch, states), transition (batch, maps, states, states) where maps is 1 (every step alike) or
// steps, observation (batch, steps, states). A gradient is the probability that a path uses a logit. Where every path
// is impossible the value is -inf and all gradients are 0. NaN is passed on. Everything is computed in double.

// Recursions with probabilities are scaled when their sum leaves (1 / MARKOV_RANGE, MARKOV_RANGE).
constexpr double MARKOV_RANGE = 1e20;
// Weights below exp(-345) = 1e-150 of the largest count as 0, which keeps all products above the slow denormal numbers.
// What is lost so matters less than 1e-50, as long as any state can follow any other with at least exp(-115) = 1e-50 of
// the largest transition. Where it cannot, everything is done with logarithms, which takes ten to twenty times as long.
constexpr double MARKOV_NEGLIGIBLE = -345.0, MARKOV_RAREST = -115.0;

template <int64_t steps, int64_t maps, int64_t states> constexpr int64_t markov_scratch() {  // in numbers
    constexpr int64_t square = (states * states + 7) / 8 * 8;
    return (steps * states + 7) / 8 * 8 + ((steps + 1) * states + 7) / 8 * 8 + (maps * states * states + 7) / 8 * 8
           + 2 * square;
}

template <int64_t n, class T> INLINE double markov_max(const T* x) {  // passes over NaN, which shows in what follows
    double top = x[0];
    for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

template <int64_t n> INLINE double markov_sum(const double* x) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

// out[j] = sum_i a[i] map[i][j], four rows at a time: each addition to `out` waits for the one before
template <int64_t n>
INLINE void markov_step(const double* __restrict a, const double* __restrict map, double* __restrict out) {
    for (int64_t j = 0; j < n; j++) out[j] = 0;
    constexpr int64_t whole = n / 4 * 4;
    for (int64_t i = 0; i < whole; i += 4) {
        const double* __restrict row = map + i * n;
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            out[j] += (a[i] * row[j] + a[i + 1] * row[n + j]) + (a[i + 2] * row[2 * n + j] + a[i + 3] * row[3 * n + j]);
    }
    for (int64_t i = whole; i < n; i++)
        for (int64_t j = 0; j < n; j++) out[j] += a[i] * map[i * n + j];
}

template <int64_t n, class T> INLINE void markov_transpose(const T* __restrict map, double* __restrict out) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) out[j * n + i] = map[i * n + j];
}

// Brings a sum back into range; gives the logarithm of what was taken out.
template <int64_t n> INLINE double markov_rescale(double* x, double sum) {
    if (sum > 1 / MARKOV_RANGE && sum < MARKOV_RANGE) return 0.0;
    double inverse = 1 / sum;
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
    return ppl_log(sum);
}

// out = x - top; gives top
template <int64_t n, class T> INLINE double markov_shift(const T* __restrict x, double* __restrict out) {
    double top = markov_max<n>(x);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] - top;
    return top;
}

template <int64_t n> INLINE void markov_weights(double* __restrict x) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        bool negligible = x[i] < MARKOV_NEGLIGIBLE;
        double weight = ppl_exp(negligible ? MARKOV_NEGLIGIBLE : x[i]);  // both sides of a condition are computed
        x[i] = negligible ? 0.0 : weight;
    }
}

// Scaled weights, of which `offset` is the logarithm of the scale; false where logarithms are needed.
template <int64_t steps, int64_t maps, int64_t states, class T>
static bool markov_prepare(const T* initial, const T* transition, const T* observation, double* start, double* map,
                           double* weight, double& offset) {
    constexpr int64_t square = states * states;
    for (int64_t t = 0; t < maps; t++) {
        double top = markov_shift<square>(transition + t * square, map + t * square);
        bool dense = true;
        for (int64_t i = 0; i < square; i++) dense &= map[t * square + i] >= MARKOV_RAREST;  // false for NaN
        if (!dense) return false;
        offset += top * (maps == 1 ? steps : 1);
    }
    markov_weights<maps * square>(map);
    double lowest = markov_shift<states>(initial, start);
    offset += lowest;
    for (int64_t t = 0; t < steps; t++) {
        double top = markov_shift<states>(observation + t * states, weight + t * states);
        offset += top;
        lowest = top < lowest ? top : lowest;
    }
    if (lowest == -HUGE_VAL) return false;  // impossible
    markov_weights<states>(start);
    markov_weights<steps * states>(weight);
    return true;
}

template <int64_t steps, int64_t maps, int64_t states, class T>
static void markov_linear(double* before, const double* map, const double* weight, double* turned, double* flow,
                          double offset, T* value, T* p_initial, T* p_transition, T* p_observation) {
    constexpr int64_t n = states, square = n * n;
    double sum = 1;
    for (int64_t t = 0; t < steps; t++) {
        double to[n];
        markov_step<n>(before + t * n, map + (maps == 1 ? 0 : t * square), to);
        for (int64_t j = 0; j < n; j++) to[j] *= weight[t * n + j];
        sum = markov_sum<n>(to);
        double taken = markov_rescale<n>(to, sum);
        if (taken != 0) { offset += taken; sum = 1; }
        std::memcpy(before + (t + 1) * n, to, sizeof(to));
    }
    *value = offset + ppl_log(sum);
    double after[n], ahead[n], both[n];
    for (int64_t j = 0; j < n; j++) {
        after[j] = 1;
        p_observation[(steps - 1) * n + j] = before[steps * n + j] / sum;
    }
    if (maps == 1) {
        markov_transpose<n>(map, turned);
        for (int64_t i = 0; i < square; i++) flow[i] = 0;
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        const double* now = before + t * n;
        if (maps > 1) markov_transpose<n>(map + t * square, turned);
        for (int64_t j = 0; j < n; j++) ahead[j] = weight[t * n + j] * after[j];
        markov_step<n>(ahead, turned, after);
        for (int64_t i = 0; i < n; i++) both[i] = now[i] * after[i];
        double inverse = 1 / markov_sum<n>(both);
        T* p = t ? p_observation + (t - 1) * n : p_initial;
        for (int64_t i = 0; i < n; i++) p[i] = both[i] * inverse;
        for (int64_t i = 0; i < n; i++) {
            double here = now[i] * inverse;
            if (maps == 1)
                for (int64_t j = 0; j < n; j++) flow[i * n + j] += here * ahead[j];
            else
                for (int64_t j = 0; j < n; j++)
                    p_transition[t * square + i * n + j] = here * map[t * square + i * n + j] * ahead[j];
        }
        markov_rescale<n>(after, markov_sum<n>(after));
    }
    if (maps == 1)
        for (int64_t i = 0; i < square; i++) p_transition[i] = flow[i] * map[i];
}

// out[j] = log sum_i exp(from[i] + map[i][j]); share[i][j] becomes the part of i in that sum
template <int64_t n, class T>
static __attribute__((noinline)) void markov_log_step(const double* __restrict from, const T* __restrict map,
                                                      double* __restrict out, double* __restrict share) {
    double top[n], sum[n] = {};
    for (int64_t j = 0; j < n; j++) top[j] = from[0] + map[j];
    for (int64_t i = 1; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double x = from[i] + map[i * n + j];
            top[j] = x > top[j] ? x : top[j];
        }
    for (int64_t j = 0; j < n; j++) top[j] = top[j] == -HUGE_VAL ? 0.0 : top[j];  // -inf - -inf is NaN
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) share[i * n + j] = from[i] + map[i * n + j] - top[j];
    markov_weights<n * n>(share);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) sum[j] += share[i * n + j];
    for (int64_t j = 0; j < n; j++) out[j] = sum[j] == 0 ? -HUGE_VAL : ppl_log(sum[j]) + top[j];
    for (int64_t j = 0; j < n; j++) sum[j] = sum[j] == 0 ? 0.0 : 1 / sum[j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) share[i * n + j] *= sum[j];
}

// log sum_i exp(x[i]); x becomes exp(x) / sum
template <int64_t n> static __attribute__((noinline)) double markov_share(double* x) {
    double top = markov_max<n>(x);
    if (top == -HUGE_VAL) top = 0;
    for (int64_t i = 0; i < n; i++) x[i] -= top;
    markov_weights<n>(x);
    double sum = markov_sum<n>(x), inverse = sum == 0 ? 0.0 : 1 / sum;
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
    return ppl_log(sum) + top;
}

template <int64_t steps, int64_t maps, int64_t states, class T>
static void markov_logarithmic(const T* initial, const T* transition, const T* observation, double* before,
                               double* turned, double* share, T* value, T* p_initial, T* p_transition,
                               T* p_observation) {
    constexpr int64_t n = states, square = n * n;
    double now[n], to[n];
    for (int64_t i = 0; i < n; i++) before[i] = now[i] = initial[i];
    for (int64_t t = 0; t < steps; t++) {
        markov_log_step<n>(now, transition + (maps == 1 ? 0 : t * square), to, share);
        for (int64_t j = 0; j < n; j++) now[j] = to[j] + observation[t * n + j];
        std::memcpy(before + (t + 1) * n, now, sizeof(now));
    }
    *value = markov_share<n>(now);
    double after[n] = {}, ahead[n];
    for (int64_t j = 0; j < n; j++) p_observation[(steps - 1) * n + j] = now[j];
    for (int64_t i = 0; i < maps * square; i++) p_transition[i] = 0;
    for (int64_t t = steps - 1; t >= 0; t--) {
        if (maps > 1 || t == steps - 1) markov_transpose<n>(transition + (maps == 1 ? 0 : t * square), turned);
        for (int64_t j = 0; j < n; j++) ahead[j] = observation[t * n + j] + after[j];
        markov_log_step<n>(ahead, turned, after, share);  // share: of state j at t, given i at t - 1; transposed
        for (int64_t i = 0; i < n; i++) now[i] = before[t * n + i] + after[i];
        markov_share<n>(now);
        for (int64_t i = 0; i < n; i++) (t ? p_observation + (t - 1) * n : p_initial)[i] = now[i];
        T* used = p_transition + (maps == 1 ? 0 : t * square);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) used[i * n + j] += now[i] * share[j * n + i];
    }
}

// One chain.
template <int64_t steps, int64_t maps, int64_t states, class T>
static void markov_chain(const T* initial, const T* transition, const T* observation, T* value, T* p_initial,
                         T* p_transition, T* p_observation, double* scratch) {
    constexpr int64_t n = states, square = n * n, padded = (square + 7) / 8 * 8;
    double *turned = scratch, *flow = turned + padded, *weight = flow + padded,
           *before = weight + (steps * n + 7) / 8 * 8, *map = before + ((steps + 1) * n + 7) / 8 * 8;
    double offset = 0;
    if (markov_prepare<steps, maps, n>(initial, transition, observation, before, map, weight, offset))
        markov_linear<steps, maps, n>(before, map, weight, turned, flow, offset, value, p_initial, p_transition,
                                      p_observation);
    else
        markov_logarithmic<steps, maps, n>(initial, transition, observation, before, turned, flow, value, p_initial,
                                           p_transition, p_observation);
}

// All chains; `out` holds the values (batch), then the gradients, shaped as the arguments, one after another.
template <int64_t batch, int64_t steps, int64_t maps, int64_t states, class T>
static void markov_log_sum_and_marginals(const T* initial, const T* transition, const T* observation, T* out) {
    constexpr int64_t n = states, square = n * n, size = markov_scratch<steps, maps, states>(), stack = 4096;
    alignas(64) double here[size <= stack ? size : 1];
    double* scratch = here;
    if constexpr (size > stack) {
        static thread_local Scratch heap;
        scratch = (double*)heap.get(sizeof(double) * size);
    }
    T *p_initial = out + batch, *p_transition = p_initial + batch * n,
      *p_observation = p_transition + batch * maps * square;
    for (int64_t b = 0; b < batch; b++) {
        if (!scratch) { out[b] = (T)__builtin_nan(""); continue; }  // no memory
        markov_chain<steps, maps, n>(initial + b * n, transition + b * maps * square, observation + b * steps * n,
                                     out + b, p_initial + b * n, p_transition + b * maps * square,
                                     p_observation + b * steps * n, scratch);
    }
}
