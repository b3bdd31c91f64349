/* How the weights of every quantised format are taken out of a tile. Included by kernel_table.inc.h after the lanes.

   Whatever the format, 16 outputs x 32 inputs become the same: eight vectors of bytes, where byte 4*output + j of vector v is the weight of
   input 4v + j, and numbers that belong to the outputs (block_scales). For few rows they are used as they come out of the registers; for
   many they are kept for all rows (unpacked_block). What differs between formats is told here and nowhere else; what the bits stand for is
   told in docs/kernels.md. */

/* The weights' form, which the matmul is written for. Weights are unsigned but for 8 bits; what has to be taken off them is multiplied by
   sums of activations instead. */
typedef struct {
    int bits;         /* 4, 5, 8: one scale per block of 32; 2, 3, 6: an integer scale per sub-block of 16 */
    int offset;       /* of 4 and 5 bits: what a weight is less than its bits say */
    int offset_shift; /* of 3 and 6 bits: its logarithm */
    int has_minima;
    int unpacked_as;  /* the format of the same form that stands for all of them after unpacking */
} weight_form;

static const weight_form FORMS[NUM_FORMATS] = {
    [FORMAT_Q4_0] = {4, 8, 0, 0, FORMAT_Q4_0},   [FORMAT_Q4_1] = {4, 0, 0, 1, FORMAT_Q4_1},   [FORMAT_Q5_0] = {5, 16, 0, 0, FORMAT_Q5_0},
    [FORMAT_Q5_1] = {5, 0, 0, 1, FORMAT_Q5_1},   [FORMAT_Q8_0] = {8, 0, 0, 0, FORMAT_Q8_0},   [FORMAT_Q2_K] = {2, 0, 0, 1, FORMAT_Q2_K},
    [FORMAT_Q3_K] = {3, 0, 2, 0, FORMAT_Q3_K},   [FORMAT_Q4_K] = {4, 0, 0, 1, FORMAT_Q4_1},   [FORMAT_Q5_K] = {5, 0, 0, 1, FORMAT_Q5_1},
    [FORMAT_Q6_K] = {6, 0, 5, 0, FORMAT_Q6_K},   [FORMAT_IQ4_NL] = {8, 0, 0, 0, FORMAT_Q8_0}, [FORMAT_IQ4_XS] = {8, 0, 0, 0, FORMAT_Q8_0},
    [FORMAT_MXFP4] = {5, 12, 0, 0, FORMAT_Q5_0}, [FORMAT_TQ2_0] = {4, 1, 0, 0, FORMAT_Q4_0},
};

LANES int has_sub_blocks(int format) { return FORMS[format].bits != 4 && FORMS[format].bits != 5 && FORMS[format].bits != 8; }

/* Where dot_add does not ask for the number of bits (ANY_BITS_ALIKE), blocks of 4, 5 and 8 bits are of one form. */
#if defined(ANY_BITS_ALIKE)
#define EACH_OTHER_NUMBER_OF_BITS(CASE)
LANES int unpacked_as(int format) {
    return has_sub_blocks(format) ? FORMS[format].unpacked_as : FORMS[format].has_minima ? FORMAT_Q4_1 : FORMAT_Q4_0;
}
#else
#define EACH_OTHER_NUMBER_OF_BITS(CASE) CASE(FORMAT_Q5_0) CASE(FORMAT_Q5_1) CASE(FORMAT_Q8_0)
LANES int unpacked_as(int format) { return FORMS[format].unpacked_as; }
#endif

/* Of the 16 outputs: factor of the dot products, and of the sums of activations (minima); integer factors of the two sub-blocks of 16. */
typedef struct {
    f32x16 scales, minima;
    i32x16 pairs, minimum_pairs;
} block_scales;

typedef struct {
    uint8_t weights[8][4 * TILE_OUTPUTS];
    float scales[TILE_OUTPUTS], minima[TILE_OUTPUTS];
    int32_t pairs[TILE_OUTPUTS], minimum_pairs[TILE_OUTPUTS];
} unpacked_block;

LANES size_t tile_block_bytes(int format) { return (size_t)BLOCK_FORMATS[format].block_bytes * TILE_OUTPUTS; }

LANES int blocks_per_super(int format) { return BLOCK_FORMATS[format].block_size / QUANT_BLOCK; }

/* Vector i of those after the numbers of a block in a tile. */
LANES const uint8_t* word_at(int format, const uint8_t* block, int i) {
    return block + (BLOCK_FORMATS[format].number_bytes * BLOCK_FORMATS[format].num_numbers + 4 * i) * TILE_OUTPUTS;
}
LANES u8x64 bytes_at(int format, const uint8_t* block, int i) { return u8x64_load(word_at(format, block, i)); }
LANES i32x16 words_at(int format, const uint8_t* block, int i) { return i32x16_load((const int32_t*)word_at(format, block, i)); }

/* The nibbles of vector v where a block is laid out as in Q4_0, its first vector being `first`. */
LANES u8x64 nibbles_at(int format, const uint8_t* block, int first, int v) {
    return u8x64_bits(bytes_at(format, block, first + v % 4), v / 4 * 4, 15);
}

/* Weights of MXFP4 12 higher than they are, which makes them numbers of 5 bits. */
static const int8_t RAISED_MXFP4_VALUES[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* Vector v (of eight) of the weights of block b within a block of the format; it meets bytes 4v..4v+3 of the activations. */
LANES u8x64 weights_at(int format, const uint8_t* block, int b, int v) {
    const int half = b / 4, quarter = b % 4; /* of 256 inputs, where two bits at a time are stored */
    u8x64 low, high;
    switch (format) {
        case FORMAT_Q5_0:
        case FORMAT_Q5_1:
            low = nibbles_at(format, block, 1, v);
            high = u8x64_bits(bytes_at(format, block, 0), v, 1);
            return u8x64_or(low, u8x64_shift_left(high, 4));
        case FORMAT_Q8_0: return s8_operand(bytes_at(format, block, v));
        case FORMAT_Q2_K: return u8x64_bits(bytes_at(format, block, 4 + 8 * half + v), 2 * quarter, 3);
        case FORMAT_Q3_K:
            low = u8x64_bits(bytes_at(format, block, 8 + 8 * half + v), 2 * quarter, 3);
            high = u8x64_bits(bytes_at(format, block, v), b, 1);
            return u8x64_or(low, u8x64_shift_left(high, 2));
        case FORMAT_Q4_K: return u8x64_bits(bytes_at(format, block, 3 + 8 * (b / 2) + v), 4 * (b % 2), 15);
        case FORMAT_Q5_K:
            low = u8x64_bits(bytes_at(format, block, 11 + 8 * (b / 2) + v), 4 * (b % 2), 15);
            high = u8x64_bits(bytes_at(format, block, 3 + v), b, 1);
            return u8x64_or(low, u8x64_shift_left(high, 4));
        case FORMAT_Q6_K:
            low = u8x64_bits(bytes_at(format, block, 16 * half + 8 * (quarter % 2) + v), 4 * (quarter / 2), 15);
            high = u8x64_bits(bytes_at(format, block, 32 + 8 * half + v), 2 * quarter, 3);
            return u8x64_or(low, u8x64_shift_left(high, 4));
        case FORMAT_IQ4_NL: return s8_operand(u8x64_lookup(IQ4_VALUES, nibbles_at(format, block, 0, v)));
        case FORMAT_IQ4_XS: return s8_operand(u8x64_lookup(IQ4_VALUES, nibbles_at(format, block, 1 + 4 * b, v)));
        case FORMAT_TQ2_0: return u8x64_bits(bytes_at(format, block, 8 * half + v), 2 * quarter, 3);
        case FORMAT_MXFP4: return u8x64_lookup(RAISED_MXFP4_VALUES, nibbles_at(format, block, 0, v));
        default: return nibbles_at(format, block, 0, v); /* Q4_0, Q4_1 */
    }
}

/* Scales or minima (6 bits) of block b in Q4_K and Q5_K: in the words `own` and `shared`, those of the latter from `shift` on. */
LANES f32x16 six_bits_at(int format, const uint8_t* block, int b, int own, int shift) {
    const i32x16 word = words_at(format, block, own);
    if (b < 4) {
        return f32x16_from_i32(i32x16_bits(word, 8 * b, 63));
    }
    const i32x16 low = i32x16_bits(words_at(format, block, 2), 8 * (b - 4) + shift, 15), high = i32x16_bits(word, 8 * (b - 4) + 6, 3);
    return f32x16_from_i32(i32x16_or(low, i32x16_shift_left(high, 4)));
}

/* The two scales (6 bits, less 32) of block b in Q3_K. */
LANES i32x16 q3_k_pairs(const uint8_t* block, int b) {
    const i32x16 low = i32x16_bits(words_at(FORMAT_Q3_K, block, 24 + b / 2 % 2), 16 * (b % 2) + 4 * (b / 4), 0x0f0f);
    const i32x16 high = i32x16_bits(words_at(FORMAT_Q3_K, block, 26), 16 * (b % 2) + 2 * (b / 2), 0x0303);
    return pairs_from_u8(i32x16_or(low, i32x16_shift_left(high, 4)), 32);
}

/* The two bytes that words first..first+3 have for block b. */
LANES i32x16 byte_pair_at(int format, const uint8_t* block, int first, int b) {
    return i32x16_bits(words_at(format, block, first + b / 2), 16 * (b % 2), 0xffff);
}

LANES f32x16 iq4_xs_scales(const uint8_t* block, int b) {
    const i32x16 low = i32x16_bits(words_at(FORMAT_IQ4_XS, block, 0), 4 * b, 15);
    const i32x16 high = i32x16_bits(i32x16_from_u16(block + 2 * TILE_OUTPUTS), 2 * b, 3);
    const i32x16 scales = i32x16_add(i32x16_or(low, i32x16_shift_left(high, 4)), i32x16_set1(-32));
    return f32x16_mul(f32x16_from_f16((const uint16_t*)block), f32x16_from_i32(scales));
}

/* Half of 2^(e - 127): the larger bit pattern is right, that of a normal number or that of a subnormal one (e of 0 and 1). */
LANES f32x16 mxfp4_scales(const uint8_t* block) {
    const i32x16 exponents = i32x16_from_u8(block);
    const i32x16 normal = i32x16_shift_left(i32x16_add(exponents, i32x16_set1(-1)), 23);
    const i32x16 subnormal = i32x16_shift_left(i32x16_add(exponents, i32x16_set1(1)), 21);
    return f32x16_from_bits(i32x16_max(normal, subnormal));
}

LANES block_scales scales_at(int format, const uint8_t* block, int b) {
    const uint16_t* const numbers = (const uint16_t*)block;
    block_scales out = {f32x16_zero(), f32x16_zero(), i32x16_zero(), i32x16_zero()};
    if (format == FORMAT_MXFP4) {
        out.scales = mxfp4_scales(block);
        return out;
    }
    out.scales = f32x16_from_f16(numbers);
    switch (format) {
        case FORMAT_Q4_1:
        case FORMAT_Q5_1: out.minima = f32x16_from_f16(numbers + TILE_OUTPUTS); break;
        case FORMAT_Q4_K:
        case FORMAT_Q5_K:
            out.scales = f32x16_mul(out.scales, six_bits_at(format, block, b, 0, 0));
            out.minima = f32x16_neg(f32x16_mul(f32x16_from_f16(numbers + TILE_OUTPUTS), six_bits_at(format, block, b, 1, 4)));
            break;
        case FORMAT_Q2_K:
            out.minima = f32x16_from_f16(numbers + TILE_OUTPUTS);
            out.pairs = pairs_from_u8(i32x16_bits(byte_pair_at(format, block, 0, b), 0, 0x0f0f), 0);
            out.minimum_pairs = pairs_from_u8(i32x16_bits(byte_pair_at(format, block, 0, b), 4, 0x0f0f), 0);
            break;
        case FORMAT_Q3_K: out.pairs = q3_k_pairs(block, b); break;
        case FORMAT_Q6_K: out.pairs = pairs_from_s8(byte_pair_at(format, block, 48, b)); break;
        case FORMAT_IQ4_XS: out.scales = iq4_xs_scales(block, b); break;
        default: break; /* a scale and nothing else */
    }
    return out;
}

/* The same of blocks that are unpacked: what is of no use to the form is never loaded. */
LANES block_scales unpacked_scales(int format, const unpacked_block* block) {
    block_scales out = {f32x16_load(block->scales), f32x16_zero(), i32x16_zero(), i32x16_zero()};
    if (FORMS[format].has_minima) {
        out.minima = f32x16_load(block->minima);
    }
    if (has_sub_blocks(format)) {
        out.pairs = i32x16_load(block->pairs);
        out.minimum_pairs = i32x16_load(block->minimum_pairs);
    }
    return out;
}

#if !defined(PAIRS_OF_ROWS)
LANES void keep_weights(uint8_t* to, u8x64 even, u8x64 odd) {
    u8x64_store(to, even);
    u8x64_store(to + 4 * TILE_OUTPUTS, odd);
}
#endif

LANES void unpack_block(int format, const uint8_t* block, int b, unpacked_block* out) {
    const block_scales scales = scales_at(format, block, b);
    f32x16_store(out->scales, scales.scales);
    if (FORMS[format].has_minima) {
        f32x16_store(out->minima, scales.minima);
    }
    if (has_sub_blocks(format)) {
        i32x16_store(out->pairs, scales.pairs);
        i32x16_store(out->minimum_pairs, scales.minimum_pairs);
    }
    UNROLL_ROWS
    for (int v = 0; v < 8; v += 2) {
        keep_weights(out->weights[v], weights_at(format, block, b, v), weights_at(format, block, b, v + 1));
    }
}

/* `num_blocks` blocks of 32 inputs of one tile, a multiple of what a block of the format has. */
LANES void unpack_blocks(int format, const uint8_t* block, int num_blocks, unpacked_block* out) {
    for (int i = 0; i < num_blocks; i += blocks_per_super(format), block += tile_block_bytes(format)) {
        UNROLL_ROWS
        for (int b = 0; b < blocks_per_super(format); b++) {
            unpack_block(format, block, b, out + i + b);
        }
    }
}

#define UNPACK_AS(format) \
    case format: unpack_blocks(format, block, num_blocks, out); break;
static void unpack_blocks_of(int format, const uint8_t* block, int num_blocks, unpacked_block* out) {
    switch (format) { EACH_QUANTISED_FORMAT(UNPACK_AS) }
}
