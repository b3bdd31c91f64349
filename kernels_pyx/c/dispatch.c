/* Which instruction sets this CPU (and its operating system: the check includes the saved registers) can run, and which one is in use. */
#include "kernel_table.h"

#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

static const kernel_table* const TABLES[] = {
    &kernels_scalar,
#if defined(__x86_64__)
    &kernels_avx2,
    &kernels_avx512vnni,
#endif
};

/* The names that a cap may have on any machine, in the order of TABLES. */
static const char* const NAMES[] = {"scalar", "avx2", "avx512vnni"};

static const kernel_table* active = &kernels_scalar;

#if defined(__x86_64__)
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static int has_avx512vnni(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#endif

int num_available_isas(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return has_avx512vnni() ? 3 : has_avx2() ? 2 : 1;
#else
    return 1;
#endif
}

const char* available_isa(int index) { return TABLES[index]->name; }

int select_isa(const char* cap) {
    int best = num_available_isas() - 1;
    if (cap) {
        int level = 0;
        while (level < COUNT(NAMES) && strcmp(NAMES[level], cap) != 0) {
            level++;
        }
        if (level == COUNT(NAMES)) {
            return -1;
        }
        best = level < best ? level : best;
    }
    active = TABLES[best];
    return 0;
}

const kernel_table* active_kernels(void) { return active; }

int cpu_features(const char** names, int capacity) {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#define ADD_FEATURE(feature)                                      \
    if (__builtin_cpu_supports(feature) && count < capacity) {    \
        names[count++] = feature;                                 \
    }
    ADD_FEATURE("sse4.2")
    ADD_FEATURE("avx")
    ADD_FEATURE("avx2")
    ADD_FEATURE("fma")
    ADD_FEATURE("f16c")
    ADD_FEATURE("avx512f")
    ADD_FEATURE("avx512bw")
    ADD_FEATURE("avx512vl")
    ADD_FEATURE("avx512dq")
    ADD_FEATURE("avx512vnni")
    ADD_FEATURE("avx512bf16")
#undef ADD_FEATURE
#else
    (void)names;
    (void)capacity;
#endif
    return count;
}
