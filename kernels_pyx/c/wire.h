/* Sizes and validity of encoded rows of activations.

   F32             4 bytes per number
   F16             2 bytes per number; magnitudes over 65504 saturate
   Q8_0            blocks of 32 numbers as in GGUF (f16 scale, 32 int8), the last one filled up with zeros
   Q8_0_OUTLIERS   8 pairs (u16 index, f16 value) of the numbers of largest magnitude, index ascending (0xFFFF marks a pair not used, when
                   the row has fewer numbers), then the blocks of Q8_0, in which those numbers count as zero

   NaN stays NaN; in a block of Q8_0 it makes the whole block NaN. */
#ifndef DAIRLLM_WIRE_H
#define DAIRLLM_WIRE_H

#include "kernel_table.h"

enum { NUM_OUTLIERS = 8, OUTLIER_BYTES = 4 * NUM_OUTLIERS, UNUSED_OUTLIER = 0xffff, MAX_OUTLIER_WIDTH = 65535 };

size_t encoded_row_bytes(int encoding, int width);

/* Whether the outlier indices of an encoded row are within the row and ascending (a row of any other encoding has nothing to be wrong). */
int encoded_row_is_valid(int encoding, const uint8_t* row, int width);

#endif
