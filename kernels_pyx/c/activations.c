#include "kernel_table.h"

/* 40 bytes per block of 32 (scale, offset or scaled sum, int8), or the f32 themselves. */
size_t activation_bytes(int format, int rows, int inputs) {
    const size_t row_bytes = BLOCK_FORMATS[format].block_size == 1 ? (size_t)inputs * 4 : (size_t)(inputs / QUANT_BLOCK) * 40;
    return (size_t)rows * row_bytes;
}
