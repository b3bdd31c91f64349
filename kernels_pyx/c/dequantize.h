/* Blocks in their GGUF layout as floats: exactly the values that they stand for, rounded once where f32 cannot hold them. */
#ifndef DAIRLLM_DEQUANTIZE_H
#define DAIRLLM_DEQUANTIZE_H

#include "block_formats.h"

void dequantize_blocks(int format, const uint8_t* blocks, size_t num_blocks, float* out);

/* Scale and minimum (6 bits each) of sub-block `b` of eight, from the 12 bytes that Q4_K and Q5_K have for them. */
void scale_and_minimum(const uint8_t* packed, int b, int* scale, int* minimum);

#endif
