/* y[row, output] = sum over inputs of x[row, input] * w[output, input]. Included by kernel_table.inc.h after the lanes.

   The arithmetic, the same for every instruction set, number of rows and split of the work:
     Q4_0, Q8_0     activations are quantised per block of 32 inputs (scale d_a, int8); per block, in order, with an exact integer dot
                    product: acc = fma(d_w * d_a, dot, acc)
     Q4_1           the same, then acc = fma(m_w, d_a * sum of the activations' int8, acc)
     F32, F16, BF16 acc = fma(w, x, acc), input after input
   A group of up to QUANT_ROWS (FLOAT_ROWS) rows is computed at once against a tile, so that weights are unpacked once per group. Activations
   lie group after group, in a group input block after input block, so that both operands are read as streams. */

/* One block of 32 activations of one row. `offset` is what the dot product starts with, `scaled_sum` is d_a * sum (Q4_1). */
typedef struct {
    float scale;
    union {
        int32_t offset;
        float scaled_sum;
    } extra;
    int32_t q[QUANT_BLOCK / 4];
} activation_block;
_Static_assert(sizeof(activation_block) == 40, "activation_bytes counts on it");

enum {
    PREFETCH_BYTES = 3584,          /* how far ahead of the arithmetic weights are fetched */
    CACHED_WEIGHTS = 192 << 10,     /* of weights that a sweep over rows keeps in the second-level cache */
    CACHED_ACTIVATIONS = 320 << 10, /* of activations that a sweep over tiles keeps there */
};

LANES void prefetch(const uint8_t* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) {
        __builtin_prefetch(from + PREFETCH_BYTES + i);
    }
}

LANES void store_outputs(float* y, f32x16 values, int outputs) {
    if (outputs >= TILE_OUTPUTS) {
        f32x16_store(y, values);
    } else {
        f32x16_store_partial(y, values, outputs);
    }
}

/* Vector v (of eight) of the weights of a block, which meets bytes 4v..4v+3 of the activations. */
LANES u8x64 load_weights(int format, const uint8_t* quants, int v) {
    if (format == FORMAT_Q8_0) {
        return s8_operand(u8x64_load(quants + 64 * v));
    }
    const u8x64 pair = u8x64_load(quants + 64 * (v % 4));
    return v < 4 ? u8x64_low_nibbles(pair) : u8x64_high_nibbles(pair);
}

LANES int32_t dot_start(int format, const activation_block* a) { return format == FORMAT_Q4_1 ? 0 : a->extra.offset; }

/* The dot products of one block with `rows` rows, all in progress at once. */
LANES void dot_block(int format, int rows, const uint8_t* quants, const activation_block* a, i32x16 dots[DOT_ROWS]) {
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        dots[r] = format == FORMAT_Q8_0 ? dot_s8_begin(dot_start(format, a + r)) : dot_u4_begin(dot_start(format, a + r));
    }
    UNROLL_ROWS
    for (int step = 0; step < 8; step++) {
        const int v = format == FORMAT_Q8_0 ? step : step / 2 + step % 2 * 4; /* both nibbles of a byte, one after the other */
        const u8x64 weights = load_weights(format, quants, v);
        UNROLL_ROWS
        for (int r = 0; r < rows; r++) {
            dots[r] = format == FORMAT_Q8_0 ? dot_s8_add(dots[r], weights, a[r].q[v]) : dot_u4_add(dots[r], weights, a[r].q[v]);
        }
    }
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        dots[r] = format == FORMAT_Q8_0 ? dot_s8_total(dots[r], dot_start(format, a + r)) : dot_u4_total(dots[r], dot_start(format, a + r));
    }
}

/* `rows` rows against one tile; `format` and `rows` are constants wherever this is inlined. */
LANES void quantised_tile(int format, int rows, const uint8_t* block, const activation_block* a, int num_blocks, float* y, size_t ldy,
                          int outputs) {
    const int block_bytes = BLOCK_FORMATS[format].block_bytes * TILE_OUTPUTS;
    f32x16 acc[QUANT_ROWS];
    i32x16 dots[DOT_ROWS];
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        acc[r] = f32x16_zero();
    }
    for (int b = 0; b < num_blocks; b++, block += block_bytes, a += rows) {
        prefetch(block, block_bytes);
        const uint8_t* const quants = block + (format == FORMAT_Q4_1 ? 4 : 2) * TILE_OUTPUTS;
        const f32x16 scales = f32x16_from_f16((const uint16_t*)block);
        const f32x16 minima = format == FORMAT_Q4_1 ? f32x16_from_f16((const uint16_t*)block + TILE_OUTPUTS) : f32x16_zero();
        UNROLL_ROWS
        for (int r = 0; r < rows; r++) {
            if (r % DOT_ROWS == 0) {
                dot_block(format, rows - r < DOT_ROWS ? rows - r : DOT_ROWS, quants, a + r, dots);
            }
            const f32x16 dot = f32x16_from_i32(dots[r % DOT_ROWS]);
            acc[r] = f32x16_fma(f32x16_mul(scales, f32x16_set1(a[r].scale)), dot, acc[r]);
            if (format == FORMAT_Q4_1) {
                acc[r] = f32x16_fma(minima, f32x16_set1(a[r].extra.scaled_sum), acc[r]);
            }
        }
    }
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        store_outputs(y + (size_t)r * ldy, acc[r], outputs);
    }
}

LANES f32x16 load_numbers(int format, const uint8_t* from) {
    switch (format) {
        case FORMAT_F32: return f32x16_load((const float*)from);
        case FORMAT_F16: return f32x16_from_f16((const uint16_t*)from);
        default: return f32x16_from_bf16((const uint16_t*)from);
    }
}

/* `rows` rows against `tiles` neighbouring tiles: with few rows, several tiles hide the latency of the sums. */
LANES void number_tiles(int format, int rows, int tiles, const uint8_t* tile, size_t tile_bytes, const float* x, int inputs, float* y,
                        size_t ldy, int outputs) {
    const int bytes = BLOCK_FORMATS[format].block_bytes * TILE_OUTPUTS;
    f32x16 acc[FLOAT_ROWS * 4];
    UNROLL_ROWS
    for (int i = 0; i < rows * tiles; i++) {
        acc[i] = f32x16_zero();
    }
    for (int input = 0; input < inputs; input++, tile += bytes, x += rows) {
        UNROLL_ROWS
        for (int t = 0; t < tiles; t++) {
            prefetch(tile + (size_t)t * tile_bytes, bytes);
            const f32x16 weights = load_numbers(format, tile + (size_t)t * tile_bytes);
            UNROLL_ROWS
            for (int r = 0; r < rows; r++) {
                acc[t * rows + r] = f32x16_fma(weights, f32x16_set1(x[r]), acc[t * rows + r]);
            }
        }
    }
    UNROLL_ROWS
    for (int t = 0; t < tiles; t++) {
        UNROLL_ROWS
        for (int r = 0; r < rows; r++) {
            store_outputs(y + (size_t)r * ldy + t * TILE_OUTPUTS, acc[t * rows + r], outputs - t * TILE_OUTPUTS);
        }
    }
}

/* A group kernel computes the `rows` rows of one group against tiles [tile, tile_end). In each of its cases the number of rows is a
   constant, so that all sums stay in registers. */
typedef void (*group_kernel)(const packed_matrix* w, int tile, int tile_end, const void* group, int rows, float* y, size_t ldy);

#define FEW_ROWS(CASE, format) CASE(format, 1) CASE(format, 2) CASE(format, 3) CASE(format, 4)
#define SIX_ROWS(CASE, format) FEW_ROWS(CASE, format) CASE(format, 5) CASE(format, 6)
#define ALL_ROWS(CASE, format)                                                                                                          \
    SIX_ROWS(CASE, format) CASE(format, 7) CASE(format, 8) CASE(format, 9) CASE(format, 10) CASE(format, 11) CASE(format, 12)           \
    CASE(format, 13) CASE(format, 14) CASE(format, 15) CASE(format, 16)

LANES void quantised_tiles(int format, int rows, const packed_matrix* w, int tile, int tile_end, const activation_block* group, float* y,
                           size_t ldy) {
    for (; tile < tile_end; tile++) {
        quantised_tile(format, rows, w->tiles + (size_t)tile * w->tile_bytes, group, w->inputs / QUANT_BLOCK,
                       y + (size_t)tile * TILE_OUTPUTS, ldy, w->outputs - tile * TILE_OUTPUTS);
    }
}

#define QUANTISED_CASE(format, n) \
    case n: quantised_tiles(format, n, w, tile, tile_end, group, y, ldy); break;
#define QUANTISED_GROUP(name, format)                                                                                                   \
    static void name(const packed_matrix* w, int tile, int tile_end, const void* group, int rows, float* y, size_t ldy) {               \
        switch (rows) { QUANT_ROWS_CASES(QUANTISED_CASE, format) }                                                                      \
    }

QUANTISED_GROUP(q4_0_group, FORMAT_Q4_0)
QUANTISED_GROUP(q4_1_group, FORMAT_Q4_1)
QUANTISED_GROUP(q8_0_group, FORMAT_Q8_0)

/* Tiles at once: enough sums in flight for the latency of the FMA, few enough for the registers. */
#define TILES_AT_ONCE(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)

LANES void number_group(int format, int rows, const packed_matrix* w, int tile, int tile_end, const float* group, float* y, size_t ldy) {
    const int at_once = TILES_AT_ONCE(rows);
    for (; tile + at_once <= tile_end; tile += at_once) {
        number_tiles(format, rows, at_once, w->tiles + (size_t)tile * w->tile_bytes, w->tile_bytes, group, w->inputs,
                     y + (size_t)tile * TILE_OUTPUTS, ldy, w->outputs - tile * TILE_OUTPUTS);
    }
    for (; tile < tile_end; tile++) {
        number_tiles(format, rows, 1, w->tiles + (size_t)tile * w->tile_bytes, w->tile_bytes, group, w->inputs,
                     y + (size_t)tile * TILE_OUTPUTS, ldy, w->outputs - tile * TILE_OUTPUTS);
    }
}

#define NUMBER_CASE(format, n) \
    case n: number_group(format, n, w, tile, tile_end, group, y, ldy); break;
#define NUMBER_GROUP(name, format)                                                                                                      \
    static void name(const packed_matrix* w, int tile, int tile_end, const void* group, int rows, float* y, size_t ldy) {               \
        switch (rows) { FLOAT_ROWS_CASES(NUMBER_CASE, format) }                                                                         \
    }

NUMBER_GROUP(f32_group, FORMAT_F32)
NUMBER_GROUP(f16_group, FORMAT_F16)
NUMBER_GROUP(bf16_group, FORMAT_BF16)

static const group_kernel GROUP_KERNELS[NUM_FORMATS] = {
    [FORMAT_F32] = f32_group,   [FORMAT_F16] = f16_group,   [FORMAT_BF16] = bf16_group,
    [FORMAT_Q4_0] = q4_0_group, [FORMAT_Q4_1] = q4_1_group, [FORMAT_Q8_0] = q8_0_group,
};

LANES int is_quantised(int format) { return BLOCK_FORMATS[format].block_size == QUANT_BLOCK; }

LANES int group_rows(int format) { return is_quantised(format) ? QUANT_ROWS : FLOAT_ROWS; }

LANES size_t activation_row_bytes(int format, int inputs) {
    return is_quantised(format) ? (size_t)(inputs / QUANT_BLOCK) * sizeof(activation_block) : (size_t)inputs * sizeof(float);
}

LANES int smaller(int a, int b) { return a < b ? a : b; }

/* Two levels of blocking: some tiles stay in the cache while rows sweep over them, and some rows while those tiles do. */
static void matmul_tiles(const packed_matrix* w, const void* act, int rows, float* y, size_t ldy, int tile_begin, int tile_end) {
    const int in_group = group_rows(w->format);
    const size_t row_bytes = activation_row_bytes(w->format, w->inputs);
    const int sweep_tiles = rows <= in_group ? tile_end - tile_begin : 1 + (int)(CACHED_WEIGHTS / w->tile_bytes);
    const int sweep_rows = in_group * (1 + (int)(CACHED_ACTIVATIONS / (row_bytes * (size_t)in_group)));
    for (int tile = tile_begin; tile < tile_end; tile += sweep_tiles) {
        const int sweep_tile_end = smaller(tile + sweep_tiles, tile_end);
        for (int row = 0; row < rows; row += sweep_rows) {
            const int sweep_row_end = smaller(row + sweep_rows, rows);
            for (int t = tile; t < sweep_tile_end;) {
                /* A lone group runs over all tiles in one call; several take turns at each tile, which then is in the nearest cache. */
                const int t_end = rows <= in_group ? sweep_tile_end : t + 1;
                for (int first = row; first < sweep_row_end; first += in_group) {
                    GROUP_KERNELS[w->format](w, t, t_end, (const uint8_t*)act + (size_t)first * row_bytes, smaller(in_group, rows - first),
                                             y + (size_t)first * ldy, ldy);
                }
                t = t_end;
            }
        }
    }
}

LANES void prepare_quantised_row(int format, const float* x, int num_blocks, int rows_in_group, activation_block* out) {
    for (int b = 0; b < num_blocks; b++, x += QUANT_BLOCK, out += rows_in_group) {
        int32_t sum;
        out->scale = quantise_activations(f32x16_load(x), f32x16_load(x + 16), (int8_t*)out->q, &sum);
        if (format == FORMAT_Q4_1) {
            out->extra.scaled_sum = out->scale * (float)sum;
        } else {
            out->extra.offset = sum * (format == FORMAT_Q4_0 ? -8 : DOT_S8_OFFSET);
        }
    }
}

static void prepare_activations(int format, const float* x, size_t ldx, int rows_begin, int rows_end, int rows, int inputs, void* act) {
    const int in_group = group_rows(format);
    for (int row = rows_begin; row < rows_end; row++) {
        const int first = row - row % in_group;
        const int rows_in_group = smaller(in_group, rows - first);
        uint8_t* const group = (uint8_t*)act + (size_t)first * activation_row_bytes(format, inputs);
        if (is_quantised(format)) {
            prepare_quantised_row(format, x + (size_t)row * ldx, inputs / QUANT_BLOCK, rows_in_group, (activation_block*)group + (row - first));
        } else {
            for (int input = 0; input < inputs; input++) {
                ((float*)group)[(size_t)input * (size_t)rows_in_group + (size_t)(row - first)] = x[(size_t)row * ldx + (size_t)input];
            }
        }
    }
}
