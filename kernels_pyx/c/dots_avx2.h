/* Integer dot products with AVX2 alone, for lanes_avx2.h. */
#ifndef DAIRLLM_DOTS_AVX2_H
#define DAIRLLM_DOTS_AVX2_H

#include "lanes_avx2.h"

enum { QUANT_ROWS = 4, DOT_ROWS = 4, DIRECT_ROWS = 2 };
#define QUANT_ROWS_CASES FEW_ROWS

/* Keeps a sum where it is: GCC would otherwise put all products of a block first and their sums last, and spill nearly all of them. */
LANES i32x16 in_order(i32x16 x) {
    __asm__("" : "+x"(x.a), "+x"(x.b));
    return x;
}

/* Products are summed in 16 bits as long as they fit, then widened. A pair is at most 2*15*127 = 3810 with 4 bits, so that all eight of a
   block fit; 2*31*127 = 7874 with 5 bits, four of which fit; 2*128*127 = 32512 with 8 bits, where |w| meets the activation with w's sign. */
typedef struct { i32x16 narrow, wide; } dot32;
enum { DOT_S8_OFFSET = 0 };

LANES u8x64 s8_operand(u8x64 w) { return w; }
LANES i32x16 widened(i32x16 x) {
    const __m256i ones = _mm256_set1_epi16(1);
    return I32X16(_mm256_madd_epi16(x.a, ones), _mm256_madd_epi16(x.b, ones));
}
LANES i32x16 products_u8(u8x64 w, __m256i a) { return I32X16(_mm256_maddubs_epi16(w.a, a), _mm256_maddubs_epi16(w.b, a)); }
LANES i32x16 products_s8(u8x64 w, __m256i a) {
    return I32X16(_mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(a, w.a)),
                  _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(a, w.b)));
}
LANES i32x16 add_narrow(i32x16 x, i32x16 y) { return I32X16(_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)); }
LANES dot32 dot_begin(int bits, int32_t start) { return (dot32){i32x16_zero(), bits == 8 ? i32x16_set1(start) : i32x16_zero()}; }
LANES dot32 dot_add(int bits, int step, dot32 acc, u8x64 w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    if (bits == 8) {
        return (dot32){acc.narrow, in_order(i32x16_add(acc.wide, widened(products_s8(w, a))))};
    }
    const i32x16 narrow = in_order(add_narrow(acc.narrow, products_u8(w, a)));
    return bits == 5 && step == 3 ? (dot32){i32x16_zero(), in_order(widened(narrow))} : (dot32){narrow, acc.wide};
}
LANES i32x16 dot_total(int bits, dot32 acc, int32_t start) {
    if (bits == 8) {
        return acc.wide;
    }
    const i32x16 total = i32x16_add(widened(acc.narrow), i32x16_set1(start));
    return bits == 5 ? i32x16_add(total, acc.wide) : total;
}

/* 16-bit sums of pairs: with 6 bits (2*63*127 = 16002) two fit. They are widened by the multiplication with the scale. */
enum { VECTORS_AT_ONCE = 2 };
LANES i32x16 half_scales(i32x16 pairs, int half) {
    const __m256i lower = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    const __m256i places = half ? _mm256_add_epi8(lower, _mm256_set1_epi8(2)) : lower;
    return I32X16(_mm256_shuffle_epi8(pairs.a, places), _mm256_shuffle_epi8(pairs.b, places));
}
LANES i32x16 add_scaled_dots(i32x16 acc, const u8x64 w[2], const int32_t a[2], i32x16 scales) {
    const i32x16 narrow = add_narrow(products_u8(w[0], _mm256_set1_epi32(a[0])), products_u8(w[1], _mm256_set1_epi32(a[1])));
    return in_order(i32x16_add(acc, I32X16(_mm256_madd_epi16(narrow.a, scales.a), _mm256_madd_epi16(narrow.b, scales.b))));
}

#endif
