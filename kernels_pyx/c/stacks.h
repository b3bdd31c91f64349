/* Matrices [outputs, inputs] of many experts or heads, one after the other in one memory, each of which begins with a tile of its own
   (packing.h); or those of experts wherever there is a place for them, as far as they are in memory. */
#ifndef DAIRLLM_STACKS_H
#define DAIRLLM_STACKS_H

#include "kernel_table.h"

/* Where the experts of a layer lie that come into memory when they are chosen. All matrices of an expert share a place. */
typedef struct expert_places {
    uint8_t** at;       /* [num_experts], NULL: in none */
    int most;           /* so many may be wanted at once */
    void* context;
    /* These experts, ascending, are wanted until the next call: each has a place from now on, and what is not there comes. is_there: of
       each, whether all of it is. 0, or -1 if they can't come. */
    int (*want)(void* context, const int32_t* experts, int count, uint8_t* is_there);
    /* Until all that are wanted are there: with their first matrices, gate and up, or whole. 0, or -1 if they do not come. */
    int (*wait)(void* context, int whole);
} expert_places;

typedef struct packed_stack {
    packed_matrix all;
    int num_matrices, outputs;
    const expert_places* places; /* NULL: they lie one after the other */
    size_t offset;               /* in a place */
} packed_stack;

void packed_stack_describe(packed_stack* stack, int format, int num_matrices, int outputs, int inputs); /* as packed_matrix_describe */
void packed_stack_free(packed_stack* stack);
packed_matrix stack_matrix(const packed_stack* stack, int index); /* belongs to the stack; without tiles if it is in no place */
/* As pack_rows, for the matrix of that index. */
void pack_stack_rows(packed_stack* stack, int index, int first_row, int num_rows, const uint8_t* rows);
/* Of the pages that are in memory, where the matrices lie one after the other. */
size_t stack_resident_bytes(const packed_stack* stack);

#endif
