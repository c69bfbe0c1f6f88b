// Functions for densities: nutpie's, and many points at once. They take and give doubles, whatever the precision inside.
// Positive codes tell nutpie that a point has no density; a trajectory ends there.
static int64_t ppl_point(const double* point, double* gradient, double* value, const void* const* constants) {
    if (sizeof(real) == sizeof(double)) {
        const void* inputs[1] = {point};
        void* outputs[2] = {gradient, value};
        return ppl_evaluate(inputs, outputs, constants);
    }
    static thread_local Scratch scratch;  // a thread has 2 MB of stack, which a long vector would exceed
    real *at = (real*)scratch.get(sizeof(real) * DIM * 2), *g = at + DIM, v;
    if (!at) return -1;
    for (int64_t i = 0; i < DIM; i++) at[i] = (real)point[i];
    const void* inputs[1] = {at};
    void* outputs[2] = {g, &v};
    if (ppl_evaluate(inputs, outputs, constants)) return -1;
    for (int64_t i = 0; i < DIM; i++) gradient[i] = g[i];
    *value = v;
    return 0;
}

extern "C" __attribute__((visibility("default")))
int64_t ppl_log_density(uint64_t dim, const double* point, double* gradient, double* value, void* constants) {
    if (dim != DIM || ppl_point(point, gradient, value, (const void* const*)constants)) return -1;
    for (int64_t i = 0; i < DIM; i++) if (!(ppl_abs(gradient[i]) < HUGE_VAL)) return 3;
    return ppl_abs(*value) < HUGE_VAL ? 0 : 4;
}

extern "C" __attribute__((visibility("default")))
int64_t ppl_batch(int64_t num, const double* points, double* gradients, double* values, const void* const* constants) {
    for (int64_t i = 0; i < num; i++)
        if (ppl_point(points + i * DIM, gradients + i * DIM, values + i, constants)) return -1;
    return 0;
}

extern "C" __attribute__((visibility("default")))
int64_t ppl_copy(uint64_t dim, uint64_t expanded, const double* point, double* out, void*) {
    if (dim != expanded) return -1;
    std::memcpy(out, point, sizeof(double) * dim);
    return 0;
}
