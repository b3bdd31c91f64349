/* Numbers of magnitudes up to LARGEST_F16 as blocks in their GGUF layout. No instruction set matters here: the bytes are the same everywhere,
   so that every machine that quantises a model makes the same one of it. */
#ifndef DAIRLLM_QUANTIZERS_H
#define DAIRLLM_QUANTIZERS_H

#include "block_formats.h"

/* `num_blocks` x 32 numbers; the scale makes the number of largest magnitude -8. */
void quantize_q4_0(const float* x, size_t num_blocks, uint8_t* out);

/* `num_blocks` x 256 numbers; scales and minima are searched for the least squared error, weighted by magnitude. */
void quantize_q4_k(const float* x, size_t num_blocks, uint8_t* out);

#endif
