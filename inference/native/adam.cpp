// Steps of stochastic gradient descent with Adam (Kingma & Ba 2015), as torch.optim.Adam computes them, around a
// function that gives a loss and its gradients. `inference/svi_native.py` says what Real is, compiles it once, and calls
// it. The numbers of all parameters lie in one row, tensor after tensor, as do gradients and moments.

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t (*Evaluate)(const void* const* inputs, void* const* outputs, const void* const* constants);

// Mirrored by `_Run` in inference/svi_native.py.
struct Run {
    Evaluate evaluate;            // (*params, *noise) -> (loss, *gradients)
    const void* const* constants;
    const void** inputs;          // where evaluate reads: params, then noise, which moves on from step to step
    void* const* outputs;         // where it writes: loss, then gradients, into `part`
    int64_t num_numbers;          // in all parameters
    int64_t num_params;           // tensors
    int64_t num_noise;            // tensors
    const int64_t* noise_sizes;   // numbers in each, per run of evaluate
    int64_t particles;            // runs per step, averaged
    double eps, clip_norm;        // clip_norm 0: none
    int64_t step;                 // steps taken before, counted on
    int64_t block_steps;          // recorded iterates per mean
    int64_t averaged;             // iterates in `average`, the mean of the block that is not complete
    Real *params, *first, *second;  // first and second moments
    Real *gradient, *part, *loss;   // part: of one particle; the gradient itself where there is only one
    Real* average;
    // One call
    int64_t record, num_steps;
    const Real* const* noise;     // rows (num_steps * particles, size) of each
    const double* rates;          // (num_steps, 3): learning rate, beta 1, beta 2
    double *losses, *norms;       // (num_steps,), out
    Real* means;                  // (num_means, num_numbers), out: of the blocks completed
    int64_t num_means;            // out
    int64_t status;               // out: 0, 1 where a loss or gradient was not finite, 2 where evaluate failed
};

// By bits: compilers may assume that no number is infinite.
static bool finite_number(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof x);
    return ((bits >> 52) & 0x7ff) != 0x7ff;
}

static bool finite_numbers(const Real* numbers, int64_t count) {
    bool all = true;
    for (int64_t i = 0; i < count; ++i) all &= finite_number(numbers[i]);
    return all;
}

// Loss, gradient and its norm, averaged over particles.
static int64_t evaluate_step(Run& run, int64_t n) {
    const int64_t count = run.num_numbers;
    Real *__restrict gradient = run.gradient, *__restrict part = run.part;
    double loss = 0, square = 0;
    if (part != gradient) memset(gradient, 0, count * sizeof(Real));
    for (int64_t row = n * run.particles; row < (n + 1) * run.particles; ++row) {
        for (int64_t j = 0; j < run.num_noise; ++j)
            run.inputs[run.num_params + j] = run.noise[j] + row * run.noise_sizes[j];
        if (run.evaluate(run.inputs, run.outputs, run.constants)) return 2;
        loss += *run.loss / run.particles;
        if (part != gradient)
            for (int64_t i = 0; i < count; ++i) gradient[i] += part[i] / Real(run.particles);
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < count; ++i) square += double(gradient[i]) * double(gradient[i]);
    // A square may overflow where the number itself does not.
    if (!finite_number(loss) || (!finite_number(square) && !finite_numbers(gradient, count))) return 1;
    run.losses[n] = loss;
    run.norms[n] = sqrt(square);
    return 0;
}

static void update(Run& run, double norm, const double* rates) {
    const double lr = rates[0], beta1 = rates[1], beta2 = rates[2], step = double(++run.step);
    const double share = run.clip_norm / (norm + 1e-6);  // torch's guard against division by zero
    const Real keep = Real(run.clip_norm > 0 && share < 1 ? share : 1);
    const Real size = Real(lr / (1 - pow(beta1, step))), root = Real(1 / sqrt(1 - pow(beta2, step)));
    const Real weight = Real(1 - beta1), decay = Real(beta2), rest = Real(1 - beta2), eps = Real(run.eps);
    const int64_t count = run.num_numbers;
    Real *__restrict params = run.params, *__restrict first = run.first, *__restrict second = run.second;
    const Real* __restrict gradient = run.gradient;
    for (int64_t i = 0; i < count; ++i) {
        const Real g = keep * gradient[i];
        const Real m = first[i] + weight * (g - first[i]), v = decay * second[i] + rest * g * g;
        first[i] = m;
        second[i] = v;
        params[i] -= size * m / (Real(sqrt(v)) * root + eps);
    }
    if (run.record) {
        const Real portion = 1 / Real(++run.averaged);
        Real* __restrict average = run.average;
        for (int64_t i = 0; i < count; ++i) average[i] += (params[i] - average[i]) * portion;
        if (run.averaged == run.block_steps) {
            memcpy(run.means + run.num_means++ * count, average, count * sizeof(Real));
            run.averaged = 0;
        }
    }
}

// Take the steps of a call; returns how many were taken.
extern "C" int64_t ppl_adam(Run* run) {
    run->status = run->num_means = 0;
    for (int64_t n = 0; n < run->num_steps; ++n) {
        run->status = evaluate_step(*run, n);
        if (run->status) return n;
        update(*run, run->norms[n], run->rates + 3 * n);
    }
    return run->num_steps;
}
