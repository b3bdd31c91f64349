/* Matrices [outputs, inputs] of many experts or heads, one after the other in one memory; each begins with a tile of its own (packing.h). */
#ifndef DAIRLLM_STACKS_H
#define DAIRLLM_STACKS_H

#include "kernel_table.h"

typedef struct packed_stack {
    packed_matrix all;
    int num_matrices, outputs;
} packed_stack;

void packed_stack_describe(packed_stack* stack, int format, int num_matrices, int outputs, int inputs); /* as packed_matrix_describe */
void packed_stack_free(packed_stack* stack);
packed_matrix stack_matrix(const packed_stack* stack, int index); /* belongs to the stack */
/* As pack_rows, for the matrix of that index. */
void pack_stack_rows(packed_stack* stack, int index, int first_row, int num_rows, const uint8_t* rows);
/* Of the pages that are in memory. */
size_t stack_resident_bytes(const packed_stack* stack);

#endif
