/* Sixteen lanes as one register of AVX-512 (F, BW, VL, DQ, VNNI). lanes_scalar.h defines what each function does. */
#ifndef DAIRLLM_LANES_AVX512VNNI_H
#define DAIRLLM_LANES_AVX512VNNI_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "block_formats.h"

#define LANES static inline __attribute__((always_inline, unused))
#define UNROLL_ROWS _Pragma("GCC unroll 16")
enum { QUANT_ROWS = 16, FLOAT_ROWS = 16, DOT_ROWS = 1, DIRECT_ROWS = 2 };
#define QUANT_ROWS_CASES ALL_ROWS
#define FLOAT_ROWS_CASES ALL_ROWS

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __m512i u8x64;

LANES __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1u); }

LANES f32x16 f32x16_load(const float* from) { return _mm512_loadu_ps(from); }
LANES f32x16 f32x16_load_partial(const float* from, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), from); }
LANES void f32x16_store(float* to, f32x16 x) { _mm512_storeu_ps(to, x); }
LANES void f32x16_store_partial(float* to, f32x16 x, int n) { _mm512_mask_storeu_ps(to, first_lanes(n), x); }
LANES f32x16 f32x16_set1(float x) { return _mm512_set1_ps(x); }
LANES f32x16 f32x16_zero(void) { return _mm512_setzero_ps(); }
LANES f32x16 f32x16_add(f32x16 x, f32x16 y) { return _mm512_add_ps(x, y); }
LANES f32x16 f32x16_sub(f32x16 x, f32x16 y) { return _mm512_sub_ps(x, y); }
LANES f32x16 f32x16_mul(f32x16 x, f32x16 y) { return _mm512_mul_ps(x, y); }
LANES f32x16 f32x16_div(f32x16 x, f32x16 y) { return _mm512_div_ps(x, y); }
LANES f32x16 f32x16_min(f32x16 x, f32x16 y) { return _mm512_min_ps(x, y); }
LANES f32x16 f32x16_max(f32x16 x, f32x16 y) { return _mm512_max_ps(x, y); }
LANES f32x16 f32x16_fma(f32x16 x, f32x16 y, f32x16 z) { return _mm512_fmadd_ps(x, y, z); }
LANES f32x16 f32x16_sqrt(f32x16 x) { return _mm512_sqrt_ps(x); }
LANES f32x16 f32x16_abs(f32x16 x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
LANES f32x16 f32x16_neg(f32x16 x) { return _mm512_xor_ps(_mm512_set1_ps(-0.0f), x); }
LANES f32x16 f32x16_round_even(f32x16 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LANES f32x16 f32x16_select_gt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
LANES f32x16 f32x16_from_f16(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
LANES f32x16 f32x16_from_f16_partial(const uint16_t* from, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), from));
}
LANES void f32x16_to_f16(uint16_t* to, f32x16 x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
LANES f32x16 f32x16_from_bf16(const uint16_t* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}
LANES f32x16 f32x16_from_s8(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
LANES f32x16 f32x16_from_i32(i32x16 x) { return _mm512_cvtepi32_ps(x); }
LANES f32x16 f32x16_from_bits(i32x16 x) { return _mm512_castsi512_ps(x); }
LANES i32x16 f32x16_to_i32(f32x16 x) { return _mm512_cvttps_epi32(x); }
LANES i32x16 f32x16_bits(f32x16 x) { return _mm512_castps_si512(x); }
LANES f32x16 f32x16_scale2(f32x16 x, i32x16 e) {
    return _mm512_mul_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(127)), 23)));
}
LANES float f32x16_reduce_add(f32x16 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LANES float f32x16_reduce_max(f32x16 x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

LANES i32x16 i32x16_load(const int32_t* from) { return _mm512_loadu_si512(from); }
LANES void i32x16_store(int32_t* to, i32x16 x) { _mm512_storeu_si512(to, x); }
LANES i32x16 i32x16_set1(int32_t x) { return _mm512_set1_epi32(x); }
LANES i32x16 i32x16_zero(void) { return _mm512_setzero_si512(); }
LANES i32x16 i32x16_add(i32x16 x, i32x16 y) { return _mm512_add_epi32(x, y); }
LANES i32x16 i32x16_or(i32x16 x, i32x16 y) { return _mm512_or_si512(x, y); }
LANES __m128i shift_count(int shift) { return _mm_cvtsi32_si128(shift); }
LANES i32x16 i32x16_bits(i32x16 x, int shift, uint32_t mask) {
    return _mm512_and_si512(_mm512_srl_epi32(x, shift_count(shift)), _mm512_set1_epi32((int)mask));
}
LANES i32x16 i32x16_shift_left(i32x16 x, int shift) { return _mm512_sll_epi32(x, shift_count(shift)); }
LANES i32x16 i32x16_from_u8(const uint8_t* from) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)); }
LANES i32x16 i32x16_from_u16(const uint8_t* from) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)); }
LANES i32x16 i32x16_max(i32x16 x, i32x16 y) { return _mm512_max_epi32(x, y); }
LANES int32_t i32x16_reduce_add(i32x16 x) { return _mm512_reduce_add_epi32(x); }
LANES int32_t i32x16_reduce_max(i32x16 x) { return _mm512_reduce_max_epi32(x); }
LANES void i32x16_store_s8(int8_t* to, i32x16 x) { _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(x)); }

LANES u8x64 u8x64_load(const uint8_t* from) { return _mm512_loadu_si512(from); }
LANES void u8x64_store(uint8_t* to, u8x64 x) { _mm512_storeu_si512(to, x); }
/* Bytes are shifted as halves of 16 bits: what comes in from the neighbour is masked off, or is zero. */
LANES u8x64 u8x64_bits(u8x64 x, int shift, int mask) {
    return _mm512_and_si512(_mm512_srl_epi16(x, shift_count(shift)), _mm512_set1_epi8((char)mask));
}
LANES u8x64 u8x64_shift_left(u8x64 x, int shift) { return _mm512_sll_epi16(x, shift_count(shift)); }
LANES u8x64 u8x64_or(u8x64 x, u8x64 y) { return _mm512_or_si512(x, y); }
LANES u8x64 u8x64_lookup(const int8_t table[16], u8x64 places) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), places);
}

LANES i32x16 pairs_from_u8(i32x16 x, int offset) { /* bytes 0 and 1 of each lane to bytes 0 and 2 */
    const __m512i spread = _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi32(255)), _mm512_slli_epi32(_mm512_srli_epi32(x, 8), 16));
    return _mm512_sub_epi16(spread, _mm512_set1_epi16((short)offset));
}
LANES i32x16 pairs_from_s8(i32x16 x) { /* both bytes to the upper bytes of their halves, then down again with their sign */
    return _mm512_srai_epi16(_mm512_or_si512(_mm512_slli_epi16(x, 8), _mm512_slli_epi32(_mm512_srli_epi32(x, 8), 24)), 8);
}
LANES i32x16 pairs_shift_left(i32x16 x, int shift) { return _mm512_sll_epi16(x, shift_count(shift)); }
LANES i32x16 pairs_dot(i32x16 x, int32_t pair) { return _mm512_madd_epi16(x, _mm512_set1_epi32(pair)); }

/* vpdpbusd multiplies unsigned by signed bytes and adds four products to 32 bits without saturation. Signed weights are
   shifted to w + 128; `start` takes 128 times the sum of the activations off again. */
enum { DOT_S8_OFFSET = -128 };

LANES u8x64 s8_operand(u8x64 w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
LANES i32x16 add_products(i32x16 acc, u8x64 w, int32_t a4) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a4)); }
LANES i32x16 half_scales(i32x16 pairs, int half) {
    return half ? _mm512_srai_epi32(pairs, 16) : _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16);
}
LANES i32x16 add_scaled(i32x16 acc, i32x16 dots, i32x16 scales) { return _mm512_add_epi32(acc, _mm512_mullo_epi32(dots, scales)); }

#include "dots_alike.h"

#endif
