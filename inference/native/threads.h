// Rows parted among threads. The parts are the same for any number of threads, and what they add up is put together in
// their order, so that the numbers are the same, too.
#include <pthread.h>

typedef void Part(const void* values, int64_t from, int64_t to, int64_t part, char* memory);

static const int64_t MOST_THREADS = 64;
static thread_local int64_t ppl_threads = 1;  // of a caller that has other threads for other points, one

extern "C" __attribute__((visibility("default"))) void ppl_use_threads(int64_t num) {
    ppl_threads = num < 1 ? 1 : num < MOST_THREADS ? num : MOST_THREADS;
}

struct Parts {
    Part* run;
    const void* values;
    int64_t rows, step;
    char* memory;  // `bytes` of it for each thread
    int64_t bytes, next, threads;
};

static void* take_parts(void* work) {
    Parts& w = *(Parts*)work;
    char* memory = w.memory + w.bytes * __atomic_fetch_add(&w.threads, 1, __ATOMIC_RELAXED);
    for (;;) {
        const int64_t part = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED), from = part * w.step;
        if (from >= w.rows) return nullptr;
        w.run(w.values, from, from + w.step < w.rows ? from + w.step : w.rows, part, memory);
    }
}

static void run_parts(Part* run, const void* values, int64_t rows, int64_t step, char* memory, int64_t bytes) {
    Parts work = {run, values, rows, step, memory, bytes, 0, 0};
    pthread_t threads[MOST_THREADS];
    int64_t started = 0;
    while (started < ppl_threads - 1 && !pthread_create(&threads[started], nullptr, take_parts, &work)) started++;
    take_parts(&work);
    for (int64_t i = 0; i < started; i++) pthread_join(threads[i], nullptr);
}
