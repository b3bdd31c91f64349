/* Blocks of 32 numbers to int8 with one scale. Included by kernel_table.inc.h after the lanes. */

/* The largest magnitude as a bit pattern; as integers, any NaN is larger than infinity and infinity than every number. */
LANES int32_t largest_magnitude_bits(f32x16 low, f32x16 high) {
    return i32x16_reduce_max(i32x16_max(f32x16_bits(f32x16_abs(low)), f32x16_bits(f32x16_abs(high))));
}

/* q = round_half_even(x * inverse), within -127..127; inverse: 1 / scale */
LANES i32x16 quantise_lanes(f32x16 x, f32x16 inverse) { return f32x16_to_i32(f32x16_round_even(f32x16_mul(x, inverse))); }

/* The 32 of a block, and the sums of both halves. */
LANES void quantise_block(f32x16 low, f32x16 high, float scale, int8_t* q, int32_t sums[2]) {
    const f32x16 inverse = f32x16_set1(1.0f / scale);
    const i32x16 q_low = quantise_lanes(low, inverse), q_high = quantise_lanes(high, inverse);
    i32x16_store_s8(q, q_low);
    i32x16_store_s8(q + 16, q_high);
    sums[0] = i32x16_reduce_add(q_low);
    sums[1] = i32x16_reduce_add(q_high);
}

/* Scale of one block of activations. A block with an infinity or a NaN has a NaN for scale, so that the outputs say so; one
   whose scale would be subnormal counts as zero (1 / scale could overflow). */
LANES float block_scale(f32x16 low, f32x16 high) {
    const int32_t largest = largest_magnitude_bits(low, high);
    if (largest >= 0x7f800000) {
        return f32_from_bits(0x7fc00000u);
    }
    const float scale = f32_from_bits((uint32_t)largest) / 127.0f;
    return scale >= 0x1p-126f ? scale : 0.0f;
}

/* Scale and int8 of one block of activations, and the sums of both halves of these. */
LANES float quantise_activations(f32x16 low, f32x16 high, int8_t* q, int32_t sums[2]) {
    const float scale = block_scale(low, high);
    if (scale > 0.0f) {
        quantise_block(low, high, scale, q, sums);
    } else {
        memset(q, 0, QUANT_BLOCK);
        sums[0] = sums[1] = 0;
    }
    return scale;
}

enum { Q8_0_BYTES = 34 };

enum { LARGEST_F16 = 65504 };

/* Magnitudes over the limit, infinity included, become the limit. NaN stays NaN: what is broken must not turn into numbers. */
LANES f32x16 saturate(f32x16 x, float limit) {
    const f32x16 bounded = f32x16_max(f32x16_min(x, f32x16_set1(limit)), f32x16_set1(-limit));
    return f32x16_select_gt(f32x16_abs(x), f32x16_set1(-1.0f), bounded, f32x16_set1(f32_from_bits(0x7fc00000u)));
}

/* As saturate, to what a block with an f16 scale can hold. */
LANES f32x16 saturate_in_block(f32x16 x) { return saturate(x, 127.0f * LARGEST_F16); }

LANES void quantise_q8_0_block(f32x16 low, f32x16 high, uint8_t* out) {
    low = saturate_in_block(low);
    high = saturate_in_block(high);
    int8_t q[QUANT_BLOCK];
    int32_t sums[2];
    store_u16(out, f16_from_f32(quantise_activations(low, high, q, sums)));
    memcpy(out + 2, q, QUANT_BLOCK);
}

static void quantize_q8_0(const float* x, size_t num_blocks, uint8_t* out) {
    for (size_t i = 0; i < num_blocks; i++) {
        quantise_q8_0_block(f32x16_load(x + i * QUANT_BLOCK), f32x16_load(x + i * QUANT_BLOCK + 16), out + i * Q8_0_BYTES);
    }
}
