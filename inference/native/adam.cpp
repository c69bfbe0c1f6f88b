// Steps of stochastic gradient descent with Adam (Kingma & Ba 2015), as torch.optim.Adam computes them, around a
// function that gives a loss and its gradients. Compiled once; `inference/svi_native.py` calls it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Evaluate = int64_t (*)(const void* const* inputs, void* const* outputs, const void* const* constants);

// Mirrored by `_Run` in inference/svi_native.py. Real is double or float; the numbers of all parameters lie in one row.
struct Run {
    Evaluate evaluate;                // (*params, *noise) -> (loss, *gradients)
    const void* const* constants;
    int64_t num_params;               // tensors
    const int64_t* param_sizes;       // numbers in each
    int64_t num_noise;                // tensors
    const int64_t* noise_sizes;       // numbers in each, per run of `evaluate`
    int64_t particles;                // runs per step, averaged
    double eps, clip_norm;            // clip_norm 0: none
    int64_t step;                     // steps taken before, counted on
    int64_t averaged;                 // iterates in `average`, counted on
    void *params, *first, *second, *average;  // Real, moments as in the paper
    int64_t add_to_average;
    // One block of steps
    int64_t num_steps;
    const void* const* noise;         // rows (num_steps * particles, size) of each
    const double* rates;              // (num_steps, 3): learning rate, beta 1, beta 2
    double *losses, *norms;           // (num_steps,), out
    int64_t status;                   // out: 0, 1 where a loss or gradient was not finite, 2 where `evaluate` failed
};

namespace {

// By bits: compilers may assume that no number is infinite.
bool finite(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return ((bits >> 52) & 0x7ff) != 0x7ff;
}
bool finite(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return ((bits >> 23) & 0xff) != 0xff;
}

template <typename Real>
class Loop {
  public:
    explicit Loop(Run& run) : run_(run), total_(0) {
        for (int64_t i = 0; i < run.num_params; ++i) {
            inputs_.push_back(static_cast<Real*>(run.params) + total_);
            total_ += run.param_sizes[i];
        }
        inputs_.resize(run.num_params + run.num_noise);
        gradient_.resize(total_);
        if (run.particles > 1) part_.resize(total_);
        Real* out = (run.particles > 1 ? part_ : gradient_).data();
        outputs_.push_back(&loss_);
        for (int64_t i = 0; i < run.num_params; ++i) {
            outputs_.push_back(out);
            out += run.param_sizes[i];
        }
    }

    int64_t steps() {
        run_.status = 0;
        for (int64_t n = 0; n < run_.num_steps; ++n) {
            run_.status = gradient(n);
            if (run_.status) return n;
            update(run_.rates + 3 * n);
        }
        return run_.num_steps;
    }

  private:
    // Loss, gradient and its norm, averaged over particles.
    int64_t gradient(int64_t n) {
        double loss = 0;
        if (run_.particles > 1) std::memset(gradient_.data(), 0, total_ * sizeof(Real));
        for (int64_t row = n * run_.particles; row < (n + 1) * run_.particles; ++row) {
            for (int64_t j = 0; j < run_.num_noise; ++j)
                inputs_[run_.num_params + j] = static_cast<const Real*>(run_.noise[j]) + row * run_.noise_sizes[j];
            if (run_.evaluate(inputs_.data(), outputs_.data(), run_.constants)) return 2;
            loss += loss_ / run_.particles;
            if (run_.particles > 1)
                for (int64_t i = 0; i < total_; ++i) gradient_[i] += part_[i] / Real(run_.particles);
        }
        bool all = finite(loss);
        double square = 0;
        for (int64_t i = 0; i < total_; ++i) {
            all &= finite(gradient_[i]);
            square += double(gradient_[i]) * double(gradient_[i]);
        }
        if (!all) return 1;
        run_.losses[n] = loss;
        run_.norms[n] = std::sqrt(square);
        if (run_.clip_norm > 0) {
            double share = run_.clip_norm / (run_.norms[n] + 1e-6);  // torch's guard against division by zero
            if (share < 1)
                for (int64_t i = 0; i < total_; ++i) gradient_[i] *= Real(share);
        }
        return 0;
    }

    void update(const double* rates) {
        const double lr = rates[0], beta1 = rates[1], beta2 = rates[2];
        const double step = double(++run_.step);
        const Real size = Real(lr / (1 - std::pow(beta1, step)));
        const Real root = Real(std::sqrt(1 - std::pow(beta2, step)));
        const Real weight = Real(1 - beta1), decay = Real(beta2), rest = Real(1 - beta2), eps = Real(run_.eps);
        Real *params = static_cast<Real*>(run_.params), *first = static_cast<Real*>(run_.first),
             *second = static_cast<Real*>(run_.second);
        for (int64_t i = 0; i < total_; ++i) {
            const Real g = gradient_[i];
            first[i] += weight * (g - first[i]);
            second[i] = decay * second[i] + rest * g * g;
            params[i] -= size * (first[i] / (std::sqrt(second[i]) / root + eps));
        }
        if (run_.add_to_average) {
            Real* average = static_cast<Real*>(run_.average);
            const Real count = Real(++run_.averaged);
            for (int64_t i = 0; i < total_; ++i) average[i] += (params[i] - average[i]) / count;
        }
    }

    Run& run_;
    int64_t total_;
    Real loss_ = 0;
    std::vector<const void*> inputs_;
    std::vector<void*> outputs_;
    std::vector<Real> gradient_, part_;
};

}  // namespace

// Take the steps of a block; returns how many were taken.
extern "C" int64_t ppl_adam_float64(Run* run) { return Loop<double>(*run).steps(); }
extern "C" int64_t ppl_adam_float32(Run* run) { return Loop<float>(*run).steps(); }
