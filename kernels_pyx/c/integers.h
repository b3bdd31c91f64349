/* Comparisons of sizes, for all files. */
#ifndef DAIRLLM_INTEGERS_H
#define DAIRLLM_INTEGERS_H

#include <stddef.h>

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

#endif
