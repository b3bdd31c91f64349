/* Tiles of 16 outputs: how a packed matrix lies in memory.

   A tile holds 16 rows (outputs) of the weight matrix, its inputs block after block, in exactly as many bytes as the source has. Of a block:
     - its numbers (the value itself, scales, minima), one after the other, each of them for the 16 outputs;
     - the rest in vectors of 64 bytes: bytes 4i..4i+3 of an output's block are bytes 4*output..4*output+3 of vector i.
   In Q5_0 and Q5_1 the word of fifth bits is turned: bit v of byte j is that of input 4v+j. BLOCK_FORMATS says which bytes are numbers.
   Outputs lie across lanes, so that no kernel ever adds horizontally and every register width gives the same bits. */
#ifndef DAIRLLM_PACKING_H
#define DAIRLLM_PACKING_H

#include "kernel_table.h"

/* Zeros, on huge pages where the system has them; NULL if there is no memory. */
uint8_t* map_weight_memory(size_t bytes);
void unmap_weight_memory(uint8_t* memory, size_t bytes);

/* Without tiles yet: `tiles` is set to memory of packed_matrix_bytes by whoever has it, or allocated. Arguments are valid (the inputs a
   multiple of the block, nothing below 1). */
void packed_matrix_describe(packed_matrix* w, int format, int outputs, int inputs);
int packed_matrix_allocate(packed_matrix* w); /* tiles of its own, zero; 0, or -1 if there is no memory */
void packed_matrix_free(packed_matrix* w);
size_t packed_matrix_bytes(const packed_matrix* w);

/* Put `num_rows` rows in their GGUF layout at outputs first_row and on. first_row is a multiple of 16, and so is num_rows unless the rows
   end the matrix. Calls for different tiles may run at once. */
void pack_rows(packed_matrix* w, int first_row, int num_rows, const uint8_t* rows);

/* One row (output) as `inputs` floats, exactly the values that its blocks stand for. */
void dequantize_row(const packed_matrix* w, int row, float* out);

#endif
