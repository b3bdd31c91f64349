/* y[row, output] = sum over inputs of x[row, input] * w[output, input]. Included by kernel_table.inc.h after unpack.inc.h.

   The arithmetic (docs/kernels.md), the same for every instruction set, number of rows and split of the work: activations are quantised per
   block of 32 inputs (scale d_a, int8), and per block, in order, with exact integers: acc = fma(d_w * d_a, dot, acc), then, where there are
   minima, acc = fma(m_w, d_a * sum of the activations' int8, acc). Weights that are numbers: acc = fma(w, x, acc), input after input.
   A group of up to QUANT_ROWS (FLOAT_ROWS) rows is computed at once against a tile. Up to DIRECT_ROWS rows meet weights that are unpacked in
   registers; with more, a segment of a tile is unpacked once and swept by all groups. Activations lie group after group, in a group input
   block after input block, so that both operands are read as streams. */

/* One block of 32 activations of one row. `offset` is what the dot product starts with; `scaled_sum` is d_a * sum, for minima; `sums` are
   those of inputs 0..15 and 16..31 as a pair, negative, for sub-blocks. */
typedef struct {
    float scale;
    union {
        int32_t offset;
        float scaled_sum;
        int32_t sums;
    } extra;
    int32_t q[QUANT_BLOCK / 4];
} activation_block;
_Static_assert(sizeof(activation_block) == 40, "activation_bytes counts on it");

enum {
    PREFETCH_BYTES = 3584,      /* how far ahead of the arithmetic weights are fetched */
    CACHED_WEIGHTS = 192 << 10, /* of weights that a sweep over rows keeps in the second-level cache */
    SEGMENT_BLOCKS = 16,        /* blocks of 32 inputs that are unpacked at a time: 14 KiB, within the first-level cache */
    SWEEP_BLOCKS = 64,          /* of activations that a sweep over tiles keeps in the second-level cache, 320 KiB with these rows */
    SWEEP_ROWS = 128,
    CACHED_NUMBERS = 320 << 10, /* of activations that are numbers, likewise */
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

/* Where the weights of one block of 32 inputs are: block b of `packed`, or unpacked, whichever `format` is meant for (a constant). */
typedef struct {
    int is_unpacked;
    const uint8_t* packed;
    int b;
    const unpacked_block* unpacked;
} weight_source;

LANES u8x64 load_weights(int format, const weight_source* from, int v) {
    return from->is_unpacked ? u8x64_load(from->unpacked->weights[v]) : weights_at(format, from->packed, from->b, v);
}

LANES block_scales load_scales(int format, const weight_source* from) {
    return from->is_unpacked ? unpacked_scales(format, from->unpacked) : scales_at(format, from->packed, from->b);
}

LANES int32_t dot_start(int format, const activation_block* a) { return FORMS[format].has_minima ? 0 : a->extra.offset; }

#if defined(PAIRS_OF_ROWS)
/* Adds the products with `eights` times 8 inputs of unpacked weights, from `first` on, times `scales` where sub-blocks have some. */
LANES void dot_pairs(int rows, const unpacked_block* from, int first, int eights, const i32x16* scales, const activation_block* a,
                     i32x16 dots[DOT_ROWS]) {
    UNROLL_ROWS
    for (int r = 0; r < rows; r += 2) {
        const int other = r + 1 < rows ? r + 1 : r;
        i32x16 both[2];
        dots_of_two(from->weights[2 * first], eights, a[r].q + 2 * first, a[other].q + 2 * first, both);
        UNROLL_ROWS
        for (int i = 0; i <= other - r; i++) {
            dots[r + i] = scales ? add_scaled(dots[r + i], both[i], *scales) : i32x16_add(dots[r + i], both[i]);
        }
    }
}
#endif

/* The dot products of one block with `rows` rows, all in progress at once. */
LANES void dot_block(int format, int rows, const weight_source* from, const activation_block* a, i32x16 dots[DOT_ROWS]) {
    const int bits = FORMS[format].bits;
#if defined(PAIRS_OF_ROWS)
    if (from->is_unpacked) {
        UNROLL_ROWS
        for (int r = 0; r < rows; r++) {
            dots[r] = i32x16_set1(dot_start(format, a + r));
        }
        dot_pairs(rows, from->unpacked, 0, 4, NULL, a, dots);
        return;
    }
#endif
    dot32 sums[DOT_ROWS];
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        sums[r] = dot_begin(bits, dot_start(format, a + r));
    }
    UNROLL_ROWS
    for (int step = 0; step < 8; step++) {
        const int v = from->is_unpacked || bits == 8 ? step : step / 2 + step % 2 * 4; /* both nibbles of a byte, one after the other */
        const u8x64 weights = load_weights(format, from, v);
        UNROLL_ROWS
        for (int r = 0; r < rows; r++) {
            sums[r] = dot_add(bits, step, sums[r], weights, a[r].q[v]);
        }
    }
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        dots[r] = dot_total(bits, sums[r], dot_start(format, a + r));
    }
}

/* The same with an integer scale for each sub-block of 16 inputs. */
LANES void dot_sub_blocks(int format, int rows, const weight_source* from, i32x16 pairs, const activation_block* a, i32x16 dots[DOT_ROWS]) {
    const int shift = FORMS[format].offset_shift;
    const i32x16 offsets = pairs_shift_left(pairs, shift);
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        dots[r] = shift ? pairs_dot(offsets, a[r].extra.sums) : i32x16_zero();
    }
    UNROLL_ROWS
    for (int half = 0; half < 2; half++) {
        const i32x16 scales = half_scales(pairs, half);
#if defined(PAIRS_OF_ROWS)
        if (from->is_unpacked) {
            dot_pairs(rows, from->unpacked, 2 * half, 2, &scales, a, dots);
            continue;
        }
#endif
        UNROLL_ROWS
        for (int v = 4 * half; v < 4 * half + 4; v += VECTORS_AT_ONCE) {
            u8x64 weights[VECTORS_AT_ONCE];
            UNROLL_ROWS
            for (int i = 0; i < VECTORS_AT_ONCE; i++) {
                weights[i] = load_weights(format, from, v + i);
            }
            UNROLL_ROWS
            for (int r = 0; r < rows; r++) {
                dots[r] = add_scaled_dots(dots[r], weights, a[r].q + v, scales);
            }
        }
    }
}

/* One block of 32 inputs added to the sums of `rows` rows; `format`, `rows` and the kind of source are constants wherever this is inlined. */
LANES void add_block(int format, int rows, const weight_source* from, const activation_block* a, f32x16 acc[QUANT_ROWS]) {
    const block_scales w = load_scales(format, from);
    i32x16 dots[DOT_ROWS];
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        if (r % DOT_ROWS == 0) {
            const int at_once = rows - r < DOT_ROWS ? rows - r : DOT_ROWS;
            if (has_sub_blocks(format)) {
                dot_sub_blocks(format, at_once, from, w.pairs, a + r, dots);
            } else {
                dot_block(format, at_once, from, a + r, dots);
            }
        }
        const f32x16 scale = f32x16_set1(a[r].scale);
        acc[r] = f32x16_fma(f32x16_mul(w.scales, scale), f32x16_from_i32(dots[r % DOT_ROWS]), acc[r]);
        if (FORMS[format].has_minima && has_sub_blocks(format)) {
            const f32x16 dot = f32x16_from_i32(pairs_dot(w.minimum_pairs, a[r].extra.sums));
            acc[r] = f32x16_fma(f32x16_mul(w.minima, scale), dot, acc[r]);
        } else if (FORMS[format].has_minima) {
            acc[r] = f32x16_fma(w.minima, f32x16_set1(a[r].extra.scaled_sum), acc[r]);
        }
    }
}

/* `rows` rows against one tile, whose weights are unpacked on the way. */
LANES void quantised_tile(int format, int rows, const uint8_t* block, const activation_block* a, int num_blocks, float* y, size_t ldy,
                          int outputs) {
    const int in_super = blocks_per_super(format), bytes = (int)tile_block_bytes(format) / in_super;
    f32x16 acc[QUANT_ROWS];
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        acc[r] = f32x16_zero();
    }
    for (int i = 0; i < num_blocks; i += in_super, block += tile_block_bytes(format)) {
        for (int b = 0; b < in_super; b++, a += rows) {
            const weight_source from = {.packed = block, .b = b};
            prefetch(block + b * bytes, bytes);
            add_block(format, rows, &from, a, acc);
        }
    }
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        store_outputs(y + (size_t)r * ldy, acc[r], outputs);
    }
}

/* `rows` rows against unpacked blocks, added to the sums [rows, TILE_OUTPUTS] that there are. */
LANES void unpacked_segment(int format, int rows, const unpacked_block* blocks, const activation_block* a, int num_blocks, float* sums) {
    f32x16 acc[QUANT_ROWS];
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        acc[r] = f32x16_load(sums + r * TILE_OUTPUTS);
    }
    for (int i = 0; i < num_blocks; i++, a += rows) {
        const weight_source from = {.is_unpacked = 1, .unpacked = blocks + i};
        add_block(format, rows, &from, a, acc);
    }
    UNROLL_ROWS
    for (int r = 0; r < rows; r++) {
        f32x16_store(sums + r * TILE_OUTPUTS, acc[r]);
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

#define DIRECT_CASE(format, n) \
    case n: quantised_tiles(format, n, w, tile, tile_end, group, y, ldy); break;
#define QUANTISED_GROUP(format)                                                                                                         \
    static void direct_##format(const packed_matrix* w, int tile, int tile_end, const void* group, int rows, float* y, size_t ldy) {    \
        switch (rows) { DIRECT_CASE(format, 1) DIRECT_CASE(format, 2) }                                                                 \
    }
_Static_assert(DIRECT_ROWS == 2, "QUANTISED_GROUP has a case for each");
EACH_QUANTISED_FORMAT(QUANTISED_GROUP)

/* A segment kernel, one for each form of weights, does the same with unpacked blocks. */
typedef void (*segment_kernel)(const unpacked_block* blocks, int num_blocks, const activation_block* group, int rows, float* sums);

#define SEGMENT_CASE(format, n) \
    case n: unpacked_segment(format, n, blocks, group, num_blocks, sums); break;
#define SEGMENT_KERNEL(format)                                                                                                          \
    static void segment_##format(const unpacked_block* blocks, int num_blocks, const activation_block* group, int rows, float* sums) {  \
        switch (rows) { QUANT_ROWS_CASES(SEGMENT_CASE, format) }                                                                        \
    }
#define EACH_FORM(CASE)                                                                                                                 \
    CASE(FORMAT_Q4_0) CASE(FORMAT_Q4_1) CASE(FORMAT_Q2_K) CASE(FORMAT_Q3_K) CASE(FORMAT_Q6_K) EACH_OTHER_NUMBER_OF_BITS(CASE)
EACH_FORM(SEGMENT_KERNEL)

#define SEGMENT_ENTRY(format) [format] = segment_##format,
static const segment_kernel SEGMENT_KERNELS[NUM_FORMATS] = {EACH_FORM(SEGMENT_ENTRY)};

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

#define DIRECT_ENTRY(format) [format] = direct_##format,
static const group_kernel GROUP_KERNELS[NUM_FORMATS] = {
    [FORMAT_F32] = f32_group, [FORMAT_F16] = f16_group, [FORMAT_BF16] = bf16_group, EACH_QUANTISED_FORMAT(DIRECT_ENTRY)
};

LANES int is_quantised(int format) { return BLOCK_FORMATS[format].block_size > 1; }

LANES int group_rows(int format) { return is_quantised(format) ? QUANT_ROWS : FLOAT_ROWS; }

LANES size_t activation_row_bytes(int format, int inputs) {
    return is_quantised(format) ? (size_t)(inputs / QUANT_BLOCK) * sizeof(activation_block) : (size_t)inputs * sizeof(float);
}

/* What a sweep over one tile works with; `sums` are those of SWEEP_ROWS rows, kept out of y, whose rows may lie a multiple of 4 KiB apart. */
typedef struct {
    unpacked_block blocks[SEGMENT_BLOCKS];
    float sums[SWEEP_ROWS * TILE_OUTPUTS];
} tile_sweep;

/* Blocks [block, block_end) of one tile, for rows [row, row_end); y has the sums of the blocks before. */
static void sweep_tile(const packed_matrix* w, int tile, int block, int block_end, const activation_block* act, int rows, int row, int row_end,
                       float* y, size_t ldy, tile_sweep* sweep) {
    const int num_blocks = w->inputs / QUANT_BLOCK, outputs = min_int(TILE_OUTPUTS, w->outputs - tile * TILE_OUTPUTS);
    y += (size_t)row * ldy + (size_t)tile * TILE_OUTPUTS;
    for (int r = 0; r < row_end - row; r++) {
        const f32x16 sums = block ? f32x16_load_partial(y + (size_t)r * ldy, outputs) : f32x16_zero();
        f32x16_store(sweep->sums + r * TILE_OUTPUTS, sums);
    }
    for (int count; block < block_end; block += count) {
        const int super = block / blocks_per_super(w->format);
        count = min_int(SEGMENT_BLOCKS, block_end - block);
        unpack_blocks_of(w->format, w->tiles + (size_t)tile * w->tile_bytes + (size_t)super * tile_block_bytes(w->format), count, sweep->blocks);
        for (int first = row; first < row_end; first += QUANT_ROWS) {
            const int in_group = min_int(QUANT_ROWS, rows - first);
            const activation_block* group = act + (size_t)first * (size_t)num_blocks + (size_t)block * (size_t)in_group;
            SEGMENT_KERNELS[unpacked_as(w->format)](sweep->blocks, count, group, in_group, sweep->sums + (first - row) * TILE_OUTPUTS);
        }
    }
    for (int r = 0; r < row_end - row; r++) {
        store_outputs(y + (size_t)r * ldy, f32x16_load(sweep->sums + r * TILE_OUTPUTS), outputs);
    }
}

/* Two levels of blocking: some tiles stay in the cache while rows sweep over them, and some activations while those tiles do. */
static void sweep_tiles(const packed_matrix* w, const void* act, int rows, float* y, size_t ldy, int tile_begin, int tile_end) {
    const int num_blocks = w->inputs / QUANT_BLOCK, at_once = 1 + (int)(CACHED_WEIGHTS / w->tile_bytes);
    tile_sweep sweep;
    for (int tile = tile_begin; tile < tile_end; tile += at_once) {
        const int sweep_tile_end = min_int(tile + at_once, tile_end);
        for (int row = 0; row < rows; row += SWEEP_ROWS) {
            const int row_end = min_int(row + SWEEP_ROWS, rows);
            for (int block = 0; block < num_blocks; block += SWEEP_BLOCKS) {
                for (int t = tile; t < sweep_tile_end; t++) {
                    sweep_tile(w, t, block, min_int(block + SWEEP_BLOCKS, num_blocks), act, rows, row, row_end, y, ldy, &sweep);
                }
            }
        }
    }
}

/* Of number formats: as many rows at a time as stay in the cache while all tiles sweep over them. */
static void multiply_numbers(const packed_matrix* w, const void* act, int rows, float* y, size_t ldy, int tile_begin, int tile_end) {
    const size_t row_bytes = activation_row_bytes(w->format, w->inputs);
    const int sweep_tiles = rows <= FLOAT_ROWS ? tile_end - tile_begin : 1 + (int)(CACHED_WEIGHTS / w->tile_bytes);
    const int sweep_rows = FLOAT_ROWS * (1 + (int)(CACHED_NUMBERS / (row_bytes * FLOAT_ROWS)));
    for (int tile = tile_begin; tile < tile_end; tile += sweep_tiles) {
        const int sweep_tile_end = min_int(tile + sweep_tiles, tile_end);
        for (int row = 0; row < rows; row += sweep_rows) {
            const int sweep_row_end = min_int(row + sweep_rows, rows);
            for (int t = tile; t < sweep_tile_end;) {
                /* A lone group runs over all tiles in one call; several take turns at each tile, which then is in the nearest cache. */
                const int t_end = rows <= FLOAT_ROWS ? sweep_tile_end : t + 1;
                for (int first = row; first < sweep_row_end; first += FLOAT_ROWS) {
                    GROUP_KERNELS[w->format](w, t, t_end, (const uint8_t*)act + (size_t)first * row_bytes, min_int(FLOAT_ROWS, rows - first),
                                             y + (size_t)first * ldy, ldy);
                }
                t = t_end;
            }
        }
    }
}

static void matmul_tiles(const packed_matrix* w, const void* act, int rows, float* y, size_t ldy, int tile_begin, int tile_end) {
    if (!is_quantised(w->format)) {
        multiply_numbers(w, act, rows, y, ldy, tile_begin, tile_end);
    } else if (rows <= DIRECT_ROWS) {
        GROUP_KERNELS[w->format](w, tile_begin, tile_end, act, rows, y, ldy);
    } else {
        sweep_tiles(w, act, rows, y, ldy, tile_begin, tile_end);
    }
}

LANES void prepare_quantised_row(int format, const float* x, int num_blocks, int rows_in_group, activation_block* out) {
    for (int b = 0; b < num_blocks; b++, x += QUANT_BLOCK, out += rows_in_group) {
        int32_t sums[2];
        out->scale = quantise_activations(f32x16_load(x), f32x16_load(x + 16), (int8_t*)out->q, sums);
        if (has_sub_blocks(format)) {
            out->extra.sums = (int32_t)((uint32_t)(uint16_t)-sums[0] | (uint32_t)(uint16_t)-sums[1] << 16);
        } else if (FORMS[format].has_minima) {
            out->extra.scaled_sum = out->scale * (float)(sums[0] + sums[1]);
        } else {
            out->extra.offset = (sums[0] + sums[1]) * (FORMS[format].bits == 8 ? DOT_S8_OFFSET : -FORMS[format].offset);
        }
    }
}

static void prepare_activations(int format, const float* x, size_t ldx, int rows_begin, int rows_end, int rows, int inputs, void* act) {
    const int in_group = group_rows(format);
    for (int row = rows_begin; row < rows_end; row++) {
        const int first = row - row % in_group;
        const int rows_in_group = min_int(in_group, rows - first);
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
