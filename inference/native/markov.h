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
// Weights below exp(-575) = 1e-250 of the largest count as 0, so that no number is denormal. What is lost so matters less
// than 1e-30 as long as any state can follow any other with at least exp(-250) = 1e-108 of the largest transition.
// Where it cannot, everything is done with logarithms, which takes five times as long.
constexpr double MARKOV_NEGLIGIBLE = -575.0, MARKOV_RAREST = -250.0;

template <int64_t steps, int64_t maps, int64_t states> constexpr int64_t markov_scratch() {  // in numbers
    constexpr int64_t square = (states * states + 7) / 8 * 8;
    return (steps * states + 7) / 8 * 8 + ((steps + 1) * states + 7) / 8 * 8 + (maps * states * states + 7) / 8 * 8
           + 2 * square;
}

template <int64_t n, class T> INLINE double markov_max(const T* x) {
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
template <int64_t n> INLINE void markov_step(const double* __restrict a, const double* __restrict map, double* __restrict out) {
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

INLINE double markov_weight(double x) { return x < MARKOV_NEGLIGIBLE ? 0.0 : ppl_exp(x); }

template <int64_t n> INLINE void markov_weights(double* __restrict x) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = markov_weight(x[i]);
}

enum class Markov { linear, logarithmic, impossible };

// Scaled weights; `offset` is the logarithm of the scale.
template <int64_t steps, int64_t maps, int64_t states, class T>
static Markov markov_prepare(const T* initial, const T* transition, const T* observation, double* start, double* map,
                             double* weight, double& offset) {
    constexpr int64_t square = states * states;
    for (int64_t t = 0; t < maps; t++) {
        double top = markov_shift<square>(transition + t * square, map + t * square);
        bool dense = true;
        for (int64_t i = 0; i < square; i++) dense &= map[t * square + i] >= MARKOV_RAREST;  // false for NaN
        if (!dense) return Markov::logarithmic;
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
    if (lowest == -HUGE_VAL) return Markov::impossible;
    markov_weights<states>(start);
    markov_weights<steps * states>(weight);
    return Markov::linear;
}

template <int64_t steps, int64_t maps, int64_t states, bool gradients, class T>
static void markov_linear(double* before, const double* map, const double* weight, double* turned, double* flow,
                          double offset, T* value, T* p_initial, T* p_transition, T* p_observation) {
    constexpr int64_t n = states, square = n * n;
    double sum = 1;
    for (int64_t t = 0; t < steps; t++) {
        const double* from = before + (gradients ? t * n : 0);
        double to[n];
        markov_step<n>(from, map + (maps == 1 ? 0 : t * square), to);
        for (int64_t j = 0; j < n; j++) to[j] *= weight[t * n + j];
        sum = markov_sum<n>(to);
        double taken = markov_rescale<n>(to, sum);
        if (taken != 0) { offset += taken; sum = 1; }
        std::memcpy(before + (gradients ? (t + 1) * n : 0), to, sizeof(to));
    }
    if (value) *value = offset + ppl_log(sum);
    if constexpr (gradients) {
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
}

// out[j] = log sum_i exp(from[i] + map[i][j]); share[i][j] becomes the part of i in that sum
template <int64_t n, class T>
static __attribute__((noinline)) void markov_log_step(const double* __restrict from, const T* __restrict map, double* __restrict out,
                            double* __restrict share) {
    double top[n], sum[n] = {};
    for (int64_t j = 0; j < n; j++) top[j] = from[0] + map[j];
    for (int64_t i = 1; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double x = from[i] + map[i * n + j];
            top[j] = x > top[j] ? x : top[j];
        }
    for (int64_t j = 0; j < n; j++) top[j] = top[j] == -HUGE_VAL ? 0.0 : top[j];  // -inf - -inf is NaN
    for (int64_t i = 0; i < n; i++)
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            double x = markov_weight(from[i] + map[i * n + j] - top[j]);
            share[i * n + j] = x;
            sum[j] += x;
        }
    for (int64_t j = 0; j < n; j++) out[j] = sum[j] == 0 ? -HUGE_VAL : ppl_log(sum[j]) + top[j];
    for (int64_t j = 0; j < n; j++) sum[j] = sum[j] == 0 ? 0.0 : 1 / sum[j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) share[i * n + j] *= sum[j];
}

// log sum_i exp(x[i]); x becomes exp(x) / sum
template <int64_t n> static __attribute__((noinline)) double markov_share(double* x) {
    double top = markov_max<n>(x);
    if (top == -HUGE_VAL) {
        for (int64_t i = 0; i < n; i++) x[i] = 0;
        return top;
    }
    for (int64_t i = 0; i < n; i++) x[i] = markov_weight(x[i] - top);
    double sum = markov_sum<n>(x);
    for (int64_t i = 0; i < n; i++) x[i] /= sum;
    return ppl_log(sum) + top;
}

template <int64_t steps, int64_t maps, int64_t states, bool gradients, class T>
static void markov_logarithmic(const T* initial, const T* transition, const T* observation, double* before, double* turned,
                               double* share, T* value, T* p_initial, T* p_transition, T* p_observation) {
    constexpr int64_t n = states, square = n * n;
    double now[n], to[n];
    for (int64_t i = 0; i < n; i++) before[i] = now[i] = initial[i];
    for (int64_t t = 0; t < steps; t++) {
        markov_log_step<n>(now, transition + (maps == 1 ? 0 : t * square), to, share);
        for (int64_t j = 0; j < n; j++) now[j] = to[j] + observation[t * n + j];
        if (gradients) std::memcpy(before + (t + 1) * n, now, sizeof(now));
    }
    double total = markov_share<n>(now);
    if (value) *value = total;
    if constexpr (gradients) {
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
}

// One chain. A null `value`, or null gradients, are not computed.
template <int64_t steps, int64_t maps, int64_t states, bool gradients, class T>
static void markov_chain(const T* initial, const T* transition, const T* observation, T* value, T* p_initial,
                         T* p_transition, T* p_observation, double* scratch) {
    constexpr int64_t n = states, square = n * n, padded = (square + 7) / 8 * 8;
    double *turned = scratch, *flow = turned + padded, *weight = flow + padded,
           *before = weight + (steps * n + 7) / 8 * 8, *map = before + ((steps + 1) * n + 7) / 8 * 8;
    double offset = 0;
    Markov how = markov_prepare<steps, maps, n>(initial, transition, observation, before, map, weight, offset);
    if (how == Markov::linear) {
        markov_linear<steps, maps, n, gradients>(before, map, weight, turned, flow, offset, value, p_initial,
                                                 p_transition, p_observation);
    } else if (how == Markov::logarithmic) {
        markov_logarithmic<steps, maps, n, gradients>(initial, transition, observation, before, turned, flow, value,
                                                      p_initial, p_transition, p_observation);
    } else {
        if (value) *value = -HUGE_VAL;
        if constexpr (gradients) {
            for (int64_t i = 0; i < n; i++) p_initial[i] = 0;
            for (int64_t i = 0; i < maps * square; i++) p_transition[i] = 0;
            for (int64_t i = 0; i < steps * n; i++) p_observation[i] = 0;
        }
    }
}

// All chains; the results lie in `out` one after another: value (batch), then gradients shaped as the arguments.
template <int64_t batch, int64_t steps, int64_t maps, int64_t states, bool values, bool gradients, class T>
static void markov_chains(const T* initial, const T* transition, const T* observation, T* out) {
    constexpr int64_t n = states, square = n * n, size = markov_scratch<steps, maps, states>(), stack = 4096;
    alignas(64) double here[size <= stack ? size : 1];
    double* scratch = here;
    if constexpr (size > stack) {
        static thread_local Scratch heap;
        scratch = (double*)heap.get(sizeof(double) * size);
        if (!scratch) { *out = (T)__builtin_nan(""); return; }
    }
    T *p_initial = out + (values ? batch : 0), *p_transition = p_initial + batch * n,
      *p_observation = p_transition + batch * maps * square;
    for (int64_t b = 0; b < batch; b++)
        markov_chain<steps, maps, n, gradients>(
            initial + b * n, transition + b * maps * square, observation + b * steps * n, values ? out + b : nullptr,
            p_initial + b * n, p_transition + b * maps * square, p_observation + b * steps * n, scratch);
}

template <int64_t batch, int64_t steps, int64_t maps, int64_t states, class T>
static void markov_log_sum(const T* initial, const T* transition, const T* observation, T* out) {
    markov_chains<batch, steps, maps, states, true, false>(initial, transition, observation, out);
}

template <int64_t batch, int64_t steps, int64_t maps, int64_t states, class T>
static void markov_marginals(const T* initial, const T* transition, const T* observation, T* out) {
    markov_chains<batch, steps, maps, states, false, true>(initial, transition, observation, out);
}

template <int64_t batch, int64_t steps, int64_t maps, int64_t states, class T>
static void markov_log_sum_and_marginals(const T* initial, const T* transition, const T* observation, T* out) {
    markov_chains<batch, steps, maps, states, true, true>(initial, transition, observation, out);
}
