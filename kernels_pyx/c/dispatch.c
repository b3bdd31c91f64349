/* Which instruction sets this CPU (and its operating system: the check includes the saved registers) can run, and which one is in use. */
#include "kernel_table.h"

#include <string.h>

static int always(void) { return 1; }

#if defined(__x86_64__)
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static int has_avxvnni(void) { return has_avx2() && __builtin_cpu_supports("avxvnni"); }

static int has_avx512vnni(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#endif

/* The names that a cap may have on any machine, slowest first; with a table and a check where this machine may have it. */
static const struct {
    const char* name;
    const kernel_table* table;
    int (*is_available)(void);
} ISAS[MAX_ISAS] = {
    {"scalar", &kernels_scalar, always},
#if defined(__x86_64__)
    {"avx2", &kernels_avx2, has_avx2},
    {"avxvnni", &kernels_avxvnni, has_avxvnni},
    {"avx512vnni", &kernels_avx512vnni, has_avx512vnni},
#else
    {"avx2", NULL, NULL},
    {"avxvnni", NULL, NULL},
    {"avx512vnni", NULL, NULL},
#endif
};

static const kernel_table* active = &kernels_scalar;

/* The index-th that this CPU can run, or NULL after the last. */
static const kernel_table* available_table(int index) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (int level = 0; level < MAX_ISAS; level++) {
        if (ISAS[level].is_available && ISAS[level].is_available() && index-- == 0) {
            return ISAS[level].table;
        }
    }
    return NULL;
}

int num_available_isas(void) {
    int count = 0;
    while (available_table(count)) {
        count++;
    }
    return count;
}

const char* available_isa(int index) { return available_table(index)->name; }

static int level_of(const char* name) {
    int level = 0;
    while (level < MAX_ISAS && strcmp(ISAS[level].name, name) != 0) {
        level++;
    }
    return level;
}

int select_isa(const char* cap) {
    const int highest = cap ? level_of(cap) : MAX_ISAS - 1;
    if (highest == MAX_ISAS) {
        return -1;
    }
    const kernel_table* table;
    for (int i = 0; (table = available_table(i)) && level_of(table->name) <= highest; i++) {
        active = table;
    }
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
    ADD_FEATURE("avxvnni")
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
