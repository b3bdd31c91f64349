/* Byte shuffling between the layouts of files and of tiles. No instruction set matters here: loading is bound by memory and disk. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "packing.h"

#include "dequantize.h"

#include <sys/mman.h>

enum { HUGE_PAGE_BYTES = 2 << 20 };

static inline size_t tile_block_bytes(int format) { return (size_t)BLOCK_FORMATS[format].block_bytes * TILE_OUTPUTS; }

size_t packed_matrix_bytes(const packed_matrix* w) { return (size_t)num_tiles(w) * w->tile_bytes; }

uint8_t* map_weight_memory(size_t bytes) {
    void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
#if defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE_BYTES) {
        madvise(memory, bytes, MADV_HUGEPAGE); /* advice: without it reading is some 8 % slower, nothing more */
    }
#endif
    return memory;
}

void unmap_weight_memory(uint8_t* memory, size_t bytes) {
    if (memory) {
        munmap(memory, bytes);
    }
}

void packed_matrix_describe(packed_matrix* w, int format, int outputs, int inputs) {
    w->format = format;
    w->outputs = outputs;
    w->inputs = inputs;
    w->tile_bytes = (size_t)(inputs / BLOCK_FORMATS[format].block_size) * tile_block_bytes(format);
    w->mapped_bytes = 0;
    w->tiles = NULL;
}

int packed_matrix_allocate(packed_matrix* w) {
    w->tiles = map_weight_memory(packed_matrix_bytes(w));
    w->mapped_bytes = w->tiles ? packed_matrix_bytes(w) : 0;
    return w->tiles ? 0 : -1;
}

void packed_matrix_free(packed_matrix* w) {
    if (w->mapped_bytes) {
        unmap_weight_memory(w->tiles, w->mapped_bytes);
    }
    w->mapped_bytes = 0;
    w->tiles = NULL;
}

/* Of the eight groups of four bits in a word, bit j of group v to bit v of byte j, so that the kernels find a vector's bits in its bytes. */
static uint32_t bits_to_bytes(uint32_t bits) {
    uint32_t bytes = 0;
    for (int v = 0; v < 8; v++) {
        bytes |= ((bits >> 4 * v & 15u) * 0x00204081u & 0x01010101u) << v;
    }
    return bytes;
}

static uint32_t bits_from_bytes(uint32_t bytes) {
    uint32_t bits = 0;
    for (int v = 0; v < 8; v++) {
        const uint32_t four = bytes >> v & 0x01010101u;
        bits |= ((four | four >> 7 | four >> 14 | four >> 21) & 15u) << 4 * v;
    }
    return bits;
}

static inline int has_word_of_bits(int format) { return format == FORMAT_Q5_0 || format == FORMAT_Q5_1; }

/* Of 16 rows (fewer at the end of the matrix) that lie row_bytes apart. Inlined with a constant format, the copies become plain moves. */
static inline __attribute__((always_inline)) void pack_tile_as(int format, const uint8_t* rows, size_t row_bytes, int num_rows,
                                                               size_t num_blocks, uint8_t* tile) {
    const block_format layout = BLOCK_FORMATS[format];
    const size_t number_bytes = (size_t)layout.number_bytes, words_to = number_bytes * (size_t)layout.num_numbers * TILE_OUTPUTS;
    for (size_t block = 0; block < num_blocks; block++, tile += tile_block_bytes(format)) {
        for (int row = 0; row < num_rows; row++) {
            const uint8_t* const from = rows + (size_t)row * row_bytes + block * (size_t)layout.block_bytes;
            for (int i = 0; i < layout.num_numbers; i++) {
                memcpy(tile + number_bytes * (size_t)(TILE_OUTPUTS * i + row), from + layout.numbers_at + layout.number_bytes * i, number_bytes);
            }
            for (int i = 0; i < layout.num_words; i++) {
                memcpy(tile + words_to + 4 * (size_t)(TILE_OUTPUTS * i + row), from + layout.words_at + 4 * i, 4);
            }
            if (has_word_of_bits(format)) {
                store_u32(tile + words_to + 4 * (size_t)row, bits_to_bytes(load_u32(from + layout.words_at)));
            }
        }
    }
}

static void pack_tile(const packed_matrix* w, const uint8_t* rows, size_t row_bytes, int num_rows, uint8_t* tile) {
    const size_t num_blocks = (size_t)(w->inputs / BLOCK_FORMATS[w->format].block_size);
#define PACK_AS(format) \
    case format: pack_tile_as(format, rows, row_bytes, num_rows, num_blocks, tile); break;
    switch (w->format) { EACH_FORMAT(PACK_AS) }
#undef PACK_AS
}

void pack_rows(packed_matrix* w, int first_row, int num_rows, const uint8_t* rows) {
    const size_t row_bytes = w->tile_bytes / TILE_OUTPUTS;
    for (int row = 0; row < num_rows; row += TILE_OUTPUTS) {
        const int in_tile = num_rows - row < TILE_OUTPUTS ? num_rows - row : TILE_OUTPUTS;
        pack_tile(w, rows + (size_t)row * row_bytes, row_bytes, in_tile, w->tiles + (size_t)((first_row + row) / TILE_OUTPUTS) * w->tile_bytes);
    }
}

/* The block of one output, taken back out of its tile into GGUF layout. */
static void unpack_block(int format, const uint8_t* tile_block, int lane, uint8_t* out) {
    const block_format* layout = &BLOCK_FORMATS[format];
    const size_t number_bytes = (size_t)layout->number_bytes, words_at = number_bytes * (size_t)layout->num_numbers * TILE_OUTPUTS;
    for (int i = 0; i < layout->num_numbers; i++) {
        memcpy(out + layout->numbers_at + layout->number_bytes * i, tile_block + number_bytes * (size_t)(TILE_OUTPUTS * i + lane), number_bytes);
    }
    for (int i = 0; i < layout->num_words; i++) {
        memcpy(out + layout->words_at + 4 * i, tile_block + words_at + 4 * (size_t)(TILE_OUTPUTS * i + lane), 4);
    }
    if (has_word_of_bits(format)) {
        store_u32(out + layout->words_at, bits_from_bytes(load_u32(out + layout->words_at)));
    }
}

void dequantize_row(const packed_matrix* w, int row, float* out) {
    const int block_size = BLOCK_FORMATS[w->format].block_size;
    const uint8_t* tile_block = w->tiles + (size_t)(row / TILE_OUTPUTS) * w->tile_bytes;
    for (int input = 0; input < w->inputs; input += block_size, tile_block += tile_block_bytes(w->format)) {
        uint8_t block[LARGEST_BLOCK_BYTES];
        unpack_block(w->format, tile_block, row % TILE_OUTPUTS, block);
        dequantize_blocks(w->format, block, 1, out + input);
    }
}
