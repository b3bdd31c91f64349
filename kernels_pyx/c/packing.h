/* Tiles of 16 outputs: how a packed matrix lies in memory.

   A tile holds 16 rows (outputs) of the weight matrix, its inputs block after block, in exactly the bytes of the source:
     F32, F16, BF16   for each input: the 16 outputs' numbers
     Q4_0             for each block of 32 inputs: 16 f16 scales, then 4 vectors of 64 bytes; byte 4*output+j of vector v has input 4v+j in
                      its low and input 16+4v+j in its high nibble
     Q4_1             the same, with 16 f16 minima after the scales
     Q8_0             for each block: 16 f16 scales, then 8 vectors of 64 int8; byte 4*output+j of vector v is input 4v+j
   Outputs lie across lanes, so that no kernel ever adds horizontally and every register width gives the same bits. */
#ifndef DAIRLLM_PACKING_H
#define DAIRLLM_PACKING_H

#include "kernel_table.h"

/* 0, or -1 if there is no memory. The tiles are zero; arguments are valid (the inputs a multiple of the block, nothing below 1). */
int packed_matrix_create(packed_matrix* w, int format, int outputs, int inputs);
void packed_matrix_free(packed_matrix* w);
size_t packed_matrix_bytes(const packed_matrix* w);

/* Put `num_rows` rows in their GGUF layout at outputs first_row and on. first_row is a multiple of 16, and so is num_rows unless the rows
   end the matrix. Calls for different tiles may run at once. */
void pack_rows(packed_matrix* w, int first_row, int num_rows, const uint8_t* rows);

/* One row (output) as `inputs` floats, exactly the values that its blocks stand for. */
void dequantize_row(const packed_matrix* w, int row, float* out);

/* `num_blocks` blocks in their GGUF layout as floats. */
void dequantize_blocks(int format, const uint8_t* blocks, size_t num_blocks, float* out);
/* Blocks of Q4_0 of `num_blocks` x 32 finite numbers; the scale makes the number of largest magnitude -8. */
void quantize_q4_0(const float* x, size_t num_blocks, uint8_t* out);

#endif
