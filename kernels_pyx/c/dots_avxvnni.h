/* Integer dot products with AVX-VNNI (256 bits), for lanes_avx2.h. vpdpbusd multiplies unsigned by signed bytes and adds four products to 32
   bits without saturation. Signed weights are shifted to w + 128; `start` takes 128 times the sum of the activations off again. */
#ifndef DAIRLLM_DOTS_AVXVNNI_H
#define DAIRLLM_DOTS_AVXVNNI_H

#include "lanes_avx2.h"

enum { QUANT_ROWS = 6, DOT_ROWS = 6, DIRECT_ROWS = 2 };
#define QUANT_ROWS_CASES SIX_ROWS

typedef i32x16 dot32;
#define ANY_BITS_ALIKE
enum { DOT_S8_OFFSET = -128 };

LANES u8x64 s8_operand(u8x64 w) {
    const __m256i sign = _mm256_set1_epi8(-128);
    return (u8x64){_mm256_xor_si256(w.a, sign), _mm256_xor_si256(w.b, sign)};
}
LANES i32x16 add_products(i32x16 acc, u8x64 w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    return I32X16(_mm256_dpbusd_avx_epi32(acc.a, w.a, a), _mm256_dpbusd_avx_epi32(acc.b, w.b, a));
}
LANES dot32 dot_begin(int bits, int32_t start) {
    (void)bits;
    return i32x16_set1(start);
}
LANES dot32 dot_add(int bits, int step, dot32 acc, u8x64 w, int32_t a4) {
    (void)bits;
    (void)step;
    return add_products(acc, w, a4);
}
LANES i32x16 dot_total(int bits, dot32 acc, int32_t start) {
    (void)bits;
    (void)start;
    return acc;
}

enum { VECTORS_AT_ONCE = 4 };
LANES i32x16 half_scales(i32x16 pairs, int half) {
    if (half) {
        return I32X16(_mm256_srai_epi32(pairs.a, 16), _mm256_srai_epi32(pairs.b, 16));
    }
    return I32X16(_mm256_srai_epi32(_mm256_slli_epi32(pairs.a, 16), 16), _mm256_srai_epi32(_mm256_slli_epi32(pairs.b, 16), 16));
}
LANES i32x16 add_scaled_dots(i32x16 acc, const u8x64 w[4], const int32_t a[4], i32x16 scales) {
    i32x16 products = i32x16_zero();
    UNROLL_ROWS
    for (int v = 0; v < 4; v++) {
        products = add_products(products, w[v], a[v]);
    }
    return I32X16(_mm256_add_epi32(acc.a, _mm256_mullo_epi32(products.a, scales.a)),
                  _mm256_add_epi32(acc.b, _mm256_mullo_epi32(products.b, scales.b)));
}

#endif
