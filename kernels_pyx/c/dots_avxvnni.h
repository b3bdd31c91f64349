/* Integer dot products with AVX-VNNI (256 bits), for lanes_avx2.h. vpdpbusd multiplies unsigned by signed bytes and adds four products to 32
   bits without saturation. Signed weights are shifted to w + 128; `start` takes 128 times the sum of the activations off again. */
#ifndef DAIRLLM_DOTS_AVXVNNI_H
#define DAIRLLM_DOTS_AVXVNNI_H

#include "lanes_avx2.h"

enum { QUANT_ROWS = 6, DOT_ROWS = 6, DIRECT_ROWS = 2 };
#define QUANT_ROWS_CASES SIX_ROWS

enum { DOT_S8_OFFSET = -128 };

LANES u8x64 s8_operand(u8x64 w) {
    const __m256i sign = _mm256_set1_epi8(-128);
    return (u8x64){_mm256_xor_si256(w.a, sign), _mm256_xor_si256(w.b, sign)};
}
LANES i32x16 add_products(i32x16 acc, u8x64 w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    return I32X16(_mm256_dpbusd_avx_epi32(acc.a, w.a, a), _mm256_dpbusd_avx_epi32(acc.b, w.b, a));
}
LANES i32x16 half_scales(i32x16 pairs, int half) {
    if (half) {
        return I32X16(_mm256_srai_epi32(pairs.a, 16), _mm256_srai_epi32(pairs.b, 16));
    }
    return I32X16(_mm256_srai_epi32(_mm256_slli_epi32(pairs.a, 16), 16), _mm256_srai_epi32(_mm256_slli_epi32(pairs.b, 16), 16));
}
LANES i32x16 add_scaled(i32x16 acc, i32x16 dots, i32x16 scales) {
    return I32X16(_mm256_add_epi32(acc.a, _mm256_mullo_epi32(dots.a, scales.a)), _mm256_add_epi32(acc.b, _mm256_mullo_epi32(dots.b, scales.b)));
}

#include "dots_alike.h"

#endif
