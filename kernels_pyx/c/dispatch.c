/* Which instruction sets this CPU (and its operating system: the check includes the saved registers) can run, and which one is in use. */
#include "kernel_table.h"

#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

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
#define ON_X86(table, check) &table, check
#else
#define ON_X86(table, check) NULL, NULL
#endif

#if defined(__aarch64__)
/* Where a system does not tell, only what every AArch64 has is used. */
#if defined(__linux__)
enum { HWCAP_BIT_ASIMDDP = 20, HWCAP2_BIT_I8MM = 13 }; /* of the kernel's asm/hwcap.h */
static int has_dot_products(void) { return getauxval(AT_HWCAP) >> HWCAP_BIT_ASIMDDP & 1; }
static int has_i8mm(void) { return has_dot_products() && getauxval(AT_HWCAP2) >> HWCAP2_BIT_I8MM & 1; }
#elif defined(__APPLE__)
static int system_says(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value == 1;
}
static int has_dot_products(void) { return system_says("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_dot_products() && system_says("hw.optional.arm.FEAT_I8MM"); }
#else
static int has_dot_products(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#define ON_ARM(table, check) &table, check
#else
#define ON_ARM(table, check) NULL, NULL
#endif

/* The names that a cap may have on any machine, slowest first; with a table and a check where this machine may have it. */
static const struct {
    const char* name;
    const kernel_table* table;
    int (*is_available)(void);
} ISAS[MAX_ISAS] = {
    {"scalar", &kernels_scalar, always},
    {"avx2", ON_X86(kernels_avx2, has_avx2)},
    {"avxvnni", ON_X86(kernels_avxvnni, has_avxvnni)},
    {"avx512vnni", ON_X86(kernels_avx512vnni, has_avx512vnni)},
    {"neon", ON_ARM(kernels_neon, always)},
    {"neondot", ON_ARM(kernels_neondot, has_dot_products)},
    {"neoni8mm", ON_ARM(kernels_neoni8mm, has_i8mm)},
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
#elif defined(__aarch64__)
    const struct {
        const char* name;
        int is_there;
    } features[] = {{"asimd", 1}, {"asimddp", has_dot_products()}, {"i8mm", has_i8mm()}};
    for (int i = 0; i < (int)(sizeof features / sizeof *features) && count < capacity; i++) {
        if (features[i].is_there) {
            names[count++] = features[i].name;
        }
    }
#else
    (void)names;
    (void)capacity;
#endif
    return count;
}
