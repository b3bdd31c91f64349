/* Byte shuffling between the layouts of files and of tiles. No instruction set matters here: loading is bound by memory and disk. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "packing.h"

#include <math.h>
#include <sys/mman.h>

enum { HUGE_PAGE_BYTES = 2 << 20 };

static size_t tile_block_bytes(int format) { return (size_t)BLOCK_FORMATS[format].block_bytes * TILE_OUTPUTS; }

static int num_tiles(const packed_matrix* w) { return (w->outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS; }

size_t packed_matrix_bytes(const packed_matrix* w) { return (size_t)num_tiles(w) * w->tile_bytes; }

int packed_matrix_create(packed_matrix* w, int format, int outputs, int inputs) {
    w->format = format;
    w->outputs = outputs;
    w->inputs = inputs;
    w->tile_bytes = (size_t)(inputs / BLOCK_FORMATS[format].block_size) * tile_block_bytes(format);
    w->mapped_bytes = packed_matrix_bytes(w);
    void* memory = mmap(NULL, w->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        w->tiles = NULL;
        return -1;
    }
#if defined(MADV_HUGEPAGE)
    if (w->mapped_bytes >= HUGE_PAGE_BYTES) {
        madvise(memory, w->mapped_bytes, MADV_HUGEPAGE); /* advice: without it reading is some 8 % slower, nothing more */
    }
#endif
    w->tiles = memory;
    return 0;
}

void packed_matrix_free(packed_matrix* w) {
    if (w->tiles) {
        munmap(w->tiles, w->mapped_bytes);
        w->tiles = NULL;
    }
}

/* One block: `header` f16 numbers and `dwords` groups of four bytes, of 16 rows (fewer at the end of the matrix) that lie
   row_bytes apart. Inlined with constants, the copies become plain moves. */
static inline __attribute__((always_inline)) void pack_quantised_tile(int header, int dwords, const uint8_t* rows, size_t row_bytes,
                                                                      int num_rows, size_t num_blocks, uint8_t* tile) {
    const size_t block_bytes = (size_t)(2 * header + 4 * dwords);
    for (size_t block = 0; block < num_blocks; block++) {
        uint8_t* const to = tile + block * block_bytes * TILE_OUTPUTS;
        for (int row = 0; row < num_rows; row++) {
            const uint8_t* const from = rows + (size_t)row * row_bytes + block * block_bytes;
            for (int i = 0; i < header; i++) {
                memcpy(to + 2 * (TILE_OUTPUTS * i + row), from + 2 * i, 2);
            }
            for (int i = 0; i < dwords; i++) {
                memcpy(to + 2 * TILE_OUTPUTS * header + 4 * (TILE_OUTPUTS * i + row), from + 2 * header + 4 * i, 4);
            }
        }
    }
}

static inline __attribute__((always_inline)) void pack_number_tile(size_t number_bytes, const uint8_t* rows, size_t row_bytes, int num_rows,
                                                                   size_t inputs, uint8_t* tile) {
    for (size_t input = 0; input < inputs; input++) {
        for (int row = 0; row < num_rows; row++) {
            memcpy(tile + (input * TILE_OUTPUTS + (size_t)row) * number_bytes, rows + (size_t)row * row_bytes + input * number_bytes,
                   number_bytes);
        }
    }
}

static void pack_tile(const packed_matrix* w, const uint8_t* rows, size_t row_bytes, int num_rows, uint8_t* tile) {
    const size_t num_blocks = (size_t)(w->inputs / BLOCK_FORMATS[w->format].block_size);
    switch (w->format) {
        case FORMAT_Q4_0: pack_quantised_tile(1, 4, rows, row_bytes, num_rows, num_blocks, tile); break;
        case FORMAT_Q4_1: pack_quantised_tile(2, 4, rows, row_bytes, num_rows, num_blocks, tile); break;
        case FORMAT_Q8_0: pack_quantised_tile(1, 8, rows, row_bytes, num_rows, num_blocks, tile); break;
        case FORMAT_F32: pack_number_tile(4, rows, row_bytes, num_rows, num_blocks, tile); break;
        default: pack_number_tile(2, rows, row_bytes, num_rows, num_blocks, tile); break;
    }
}

void pack_rows(packed_matrix* w, int first_row, int num_rows, const uint8_t* rows) {
    const size_t row_bytes = w->tile_bytes / TILE_OUTPUTS;
    for (int row = 0; row < num_rows; row += TILE_OUTPUTS) {
        const int in_tile = num_rows - row < TILE_OUTPUTS ? num_rows - row : TILE_OUTPUTS;
        pack_tile(w, rows + (size_t)row * row_bytes, row_bytes, in_tile, w->tiles + (size_t)((first_row + row) / TILE_OUTPUTS) * w->tile_bytes);
    }
}

/* The block of one output, taken back out of its tile into GGUF layout. */
static void unpack_block(const packed_matrix* w, const uint8_t* tile_block, int lane, uint8_t* out) {
    const int block_bytes = BLOCK_FORMATS[w->format].block_bytes;
    const int header = w->format == FORMAT_Q4_1 ? 2 : 1;
    for (int i = 0; i < header; i++) {
        memcpy(out + 2 * i, tile_block + 2 * (TILE_OUTPUTS * i + lane), 2);
    }
    for (int at = 2 * header; at < block_bytes; at += 4) {
        memcpy(out + at, tile_block + (size_t)at * TILE_OUTPUTS + 4 * (size_t)lane, 4);
    }
}

void dequantize_row(const packed_matrix* w, int row, float* out) {
    const block_format* format = &BLOCK_FORMATS[w->format];
    const uint8_t* tile_block = w->tiles + (size_t)(row / TILE_OUTPUTS) * w->tile_bytes;
    const int lane = row % TILE_OUTPUTS;
    for (int input = 0; input < w->inputs; input += format->block_size, tile_block += tile_block_bytes(w->format)) {
        uint8_t block[34];
        if (format->block_size == 1) {
            memcpy(block, tile_block + (size_t)(lane * format->block_bytes), (size_t)format->block_bytes);
        } else {
            unpack_block(w, tile_block, lane, block);
        }
        dequantize_blocks(w->format, block, 1, out + input);
    }
}

static void dequantize_nibbles(float scale, float minimum, int offset, const uint8_t* nibbles, float* out) {
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        out[i] = scale * (float)((nibbles[i] & 15) - offset) + minimum;
        out[i + QUANT_BLOCK / 2] = scale * (float)((nibbles[i] >> 4) - offset) + minimum;
    }
}

static void dequantize_block(int format, const uint8_t* block, float* out) {
    const float first = f32_from_f16(load_u16(block));
    switch (format) {
        case FORMAT_F32: memcpy(out, block, sizeof *out); break;
        case FORMAT_F16: out[0] = first; break;
        case FORMAT_BF16: out[0] = f32_from_bf16(load_u16(block)); break;
        case FORMAT_Q4_0: dequantize_nibbles(first, 0.0f, 8, block + 2, out); break;
        case FORMAT_Q4_1: dequantize_nibbles(first, f32_from_f16(load_u16(block + 2)), 0, block + 4, out); break;
        default:
            for (int i = 0; i < QUANT_BLOCK; i++) {
                out[i] = first * (float)(int8_t)block[2 + i];
            }
    }
}

void dequantize_blocks(int format, const uint8_t* blocks, size_t num_blocks, float* out) {
    const size_t block_bytes = (size_t)BLOCK_FORMATS[format].block_bytes, block_size = (size_t)BLOCK_FORMATS[format].block_size;
    for (size_t i = 0; i < num_blocks; i++) {
        dequantize_block(format, blocks + i * block_bytes, out + i * block_size);
    }
}

static uint8_t nibble(float x, float inverse_scale) {
    const float shifted = x * inverse_scale + 8.5f;
    return (uint8_t)(shifted < 0.0f ? 0.0f : shifted > 15.0f ? 15.0f : shifted);
}

void quantize_q4_0(const float* x, size_t num_blocks, uint8_t* out) {
    for (size_t block = 0; block < num_blocks; block++, x += QUANT_BLOCK, out += 18) {
        float extreme = 0.0f;
        for (int i = 0; i < QUANT_BLOCK; i++) {
            extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
        }
        const float scale = extreme / -8.0f;
        const float inverse = fabsf(scale) >= 0x1p-126f ? 1.0f / scale : 0.0f;
        store_u16(out, f16_from_f32(scale));
        for (int i = 0; i < QUANT_BLOCK / 2; i++) {
            out[2 + i] = (uint8_t)(nibble(x[i], inverse) | nibble(x[i + QUANT_BLOCK / 2], inverse) << 4);
        }
    }
}
