/* A whole matrix multiplication on all threads of the pool. */
#ifndef DAIRLLM_MATMUL_H
#define DAIRLLM_MATMUL_H

#include "kernel_table.h"
#include "pool.h"

/* y[row * ldy + output] for `rows` rows of x[row * ldx + input]; `act` has activation_bytes(w->format, rows, w->inputs) bytes. */
void matmul(pool_t* pool, const kernel_table* kernels, const packed_matrix* w, const float* x, size_t ldx, int rows, void* act, float* y,
            size_t ldy);

/* How many neighbouring tiles one thread should take at a time: few enough to share them out evenly, enough to be worth the taking. */
int matmul_chunk_tiles(const packed_matrix* w, int num_threads);

#endif
