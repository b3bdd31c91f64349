/* Integer dot products with NEON, for lanes_neon.h: with the widening products that every AArch64 has, with sdot, or for pairs of rows with
   smmla, as the flags allow that the file is compiled with. All multiply signed by signed bytes. */
#ifndef DAIRLLM_DOTS_NEON_H
#define DAIRLLM_DOTS_NEON_H

#include "lanes_neon.h"

enum { QUANT_ROWS = 4, DOT_ROWS = 4, DIRECT_ROWS = 2 };
#define QUANT_ROWS_CASES FEW_ROWS

enum { DOT_S8_OFFSET = 0 };

LANES u8x64 s8_operand(u8x64 w) { return w; }

/* Four products are added to each lane. A pair of them is at most 2 * 128 * 127 = 32512, which 16 bits hold. */
#if defined(__ARM_FEATURE_DOTPROD)
LANES int32x4_t add_four_products(int32x4_t acc, int8x16_t w, int8x16_t a) { return vdotq_s32(acc, w, a); }
#else
LANES int32x4_t add_four_products(int32x4_t acc, int8x16_t w, int8x16_t a) {
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
    return vpadalq_s16(acc, pairs);
}
#endif

LANES i32x16 add_products(i32x16 acc, u8x64 w, int32_t a4) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(a4));
    return I32_LANES(add_four_products(acc.r[i], vreinterpretq_s8_u8(w.r[i]), a));
}
LANES i32x16 half_scales(i32x16 pairs, int half) {
    return half ? I32_LANES(vshrq_n_s32(pairs.r[i], 16)) : I32_LANES(vshrq_n_s32(vshlq_n_s32(pairs.r[i], 16), 16));
}
LANES i32x16 add_scaled(i32x16 acc, i32x16 dots, i32x16 scales) { return I32_LANES(vmlaq_s32(acc.r[i], dots.r[i], scales.r[i])); }

#include "dots_alike.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* smmla multiplies two outputs by two rows, eight inputs at a time. For it, unpacked weights are kept as registers of two outputs x eight
   inputs: eight of them are two vectors of 16 outputs x 4 inputs. */
#define PAIRS_OF_ROWS
LANES void keep_weights(uint8_t* to, u8x64 even, u8x64 odd) {
    UNROLL_ROWS
    for (int i = 0; i < 4; i++) {
        const uint32x4_t x = vreinterpretq_u32_u8(even.r[i]), y = vreinterpretq_u32_u8(odd.r[i]);
        vst1q_u8(to + 32 * i, vreinterpretq_u8_u32(vzip1q_u32(x, y)));
        vst1q_u8(to + 32 * i + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
    }
}
/* What rows a and b have to add to their dot products, over 8 * `eights` inputs. */
LANES void dots_of_two(const uint8_t* weights, int eights, const int32_t* a, const int32_t* b, i32x16 dots[2]) {
    int32x4_t sums[8];
    UNROLL_ROWS
    for (int i = 0; i < 8; i++) {
        sums[i] = vdupq_n_s32(0);
    }
    UNROLL_ROWS
    for (int e = 0; e < eights; e++) {
        const int8x16_t rows = vreinterpretq_s8_s32(vcombine_s32(vld1_s32(a + 2 * e), vld1_s32(b + 2 * e)));
        UNROLL_ROWS
        for (int i = 0; i < 8; i++) {
            sums[i] = vmmlaq_s32(sums[i], vreinterpretq_s8_u8(vld1q_u8(weights + 128 * e + 16 * i)), rows);
        }
    }
    dots[0] = I32_LANES(vuzp1q_s32(sums[2 * i], sums[2 * i + 1]));
    dots[1] = I32_LANES(vuzp2q_s32(sums[2 * i], sums[2 * i + 1]));
}
#endif

#endif
