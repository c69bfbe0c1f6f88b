// The C interface of BridgeStan (version 2.7, which nutpie 0.16 asks for) over one Stan program, for the headers that
// httpstan brings along: BridgeStan itself needs sources from GitHub. Only what nutpie and `stan_program.py` call works.
// Compiled behind the C++ that stanc writes, which defines `new_model`.
#include <cstring>
#include <exception>
#include <sstream>
#include <stan/io/json/json_data.hpp>
#include <stan/math.hpp>
#include <stan/model/model_base.hpp>
#include <stan/services/util/create_rng.hpp>
#include <string>
#include <vector>

namespace {

struct Model {
    stan::model::model_base *program;
    std::string names, unconstrained_names, name;
    int size, unconstrained_size;
};

char *copy(const std::string &text) { return strdup(text.c_str()); }

std::string joined(const std::vector<std::string> &names) {
    std::string text;
    for (const auto &name : names) text += (text.empty() ? "" : ",") + name;
    return text;
}

template <class F>
int guarded(char **error, F work) {
    try {
        work();
        return 0;
    } catch (const std::exception &e) {
        if (error) *error = copy(e.what());
    } catch (...) {
        if (error) *error = copy("unknown error");
    }
    return 1;
}

template <class T>
T log_density(const Model *m, bool propto, bool jacobian, Eigen::Matrix<T, -1, 1> &point) {
    std::ostringstream messages;
    const auto &p = *m->program;
    if (propto) return jacobian ? p.log_prob_propto_jacobian(point, &messages) : p.log_prob_propto(point, &messages);
    return jacobian ? p.log_prob_jacobian(point, &messages) : p.log_prob(point, &messages);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
__attribute__((visibility("default"))) int bs_major_version = 2, bs_minor_version = 7, bs_patch_version = 0;
}

EXPORT Model *bs_model_construct(const char *data, unsigned int seed, char **error) {
    Model *m = nullptr;
    guarded(error, [&] {
        std::istringstream stream(data && *data ? data : "{}");
        stan::json::json_data context(stream);
        std::ostringstream messages;
        auto *program = &new_model(context, seed, &messages);
        std::vector<std::string> names, unconstrained;
        program->constrained_param_names(names, false, false);
        program->unconstrained_param_names(unconstrained, false, false);
        m = new Model{program, joined(names), joined(unconstrained), program->model_name(), int(names.size()),
                      int(unconstrained.size())};
    });
    return m;
}
EXPORT void bs_model_destruct(Model *m) {
    if (m) delete m->program;
    delete m;
}
EXPORT void bs_free_error_msg(char *text) { free(text); }
EXPORT const char *bs_name(const Model *m) { return m->name.c_str(); }
EXPORT const char *bs_model_info(const Model *) { return "STAN_THREADS=true"; }
EXPORT const char *bs_param_names(const Model *m, bool, bool) { return m->names.c_str(); }
EXPORT const char *bs_param_unc_names(const Model *m) { return m->unconstrained_names.c_str(); }
EXPORT int bs_param_num(const Model *m, bool, bool) { return m->size; }
EXPORT int bs_param_unc_num(const Model *m) { return m->unconstrained_size; }

EXPORT stan::rng_t *bs_rng_construct(unsigned int seed, char **) {
    return new stan::rng_t(stan::services::util::create_rng(seed, 1));
}
EXPORT void bs_rng_destruct(stan::rng_t *rng) { delete rng; }
EXPORT int bs_set_print_callback(void *, char **) { return 0; }

EXPORT int bs_param_constrain(const Model *m, bool, bool, const double *from, double *to, stan::rng_t *rng,
                              char **error) {
    return guarded(error, [&] {
        stan::rng_t spare = stan::services::util::create_rng(1, 1);
        Eigen::VectorXd point = Eigen::Map<const Eigen::VectorXd>(from, m->unconstrained_size), values(m->size);
        std::ostringstream messages;
        m->program->write_array(rng ? *rng : spare, point, values, false, false, &messages);
        Eigen::VectorXd::Map(to, values.size()) = values;
    });
}
EXPORT int bs_param_unconstrain(const Model *, const double *, double *, char **error) {
    return guarded(error, [] { throw std::runtime_error("not offered"); });
}
EXPORT int bs_param_unconstrain_json(const Model *m, const char *json, double *to, char **error) {
    return guarded(error, [&] {
        std::istringstream stream(json);
        stan::json::json_data context(stream);
        std::ostringstream messages;
        Eigen::VectorXd point;
        m->program->transform_inits(context, point, &messages);
        Eigen::VectorXd::Map(to, point.size()) = point;
    });
}
EXPORT int bs_log_density(const Model *m, bool, bool jacobian, const double *from, double *value, char **error) {
    return guarded(error, [&] {  // with doubles `propto` would drop every term
        Eigen::VectorXd point = Eigen::Map<const Eigen::VectorXd>(from, m->unconstrained_size);
        *value = log_density(m, false, jacobian, point);
    });
}
EXPORT int bs_log_density_gradient(const Model *m, bool propto, bool jacobian, const double *from, double *value,
                                   double *gradient, char **error) {
    static thread_local stan::math::ChainableStack own_tape;  // one tape of automatic differentiation per thread
    return guarded(error, [&] {
        stan::math::nested_rev_autodiff scope;
        Eigen::Matrix<stan::math::var, -1, 1> point =
            Eigen::Map<const Eigen::VectorXd>(from, m->unconstrained_size).template cast<stan::math::var>();
        stan::math::var result = log_density(m, propto, jacobian, point);
        *value = result.val();
        stan::math::grad(result.vi_);
        Eigen::VectorXd::Map(gradient, point.size()) = point.adj();
    });
}
EXPORT int bs_log_density_hessian(const Model *, bool, bool, const double *, double *, double *, double *,
                                  char **error) {
    return guarded(error, [] { throw std::runtime_error("not offered"); });
}
EXPORT int bs_log_density_hessian_vector_product(const Model *, bool, bool, const double *, const double *, double *,
                                                 double *, char **error) {
    return guarded(error, [] { throw std::runtime_error("not offered"); });
}
