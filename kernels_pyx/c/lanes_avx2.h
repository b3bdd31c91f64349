/* Sixteen lanes as two registers of AVX2 (with FMA and F16C). lanes_scalar.h defines what each function does. The integer dot products are
   those of AVX2 (dots_avx2.h) or of AVX-VNNI (dots_avxvnni.h). */
#ifndef DAIRLLM_LANES_AVX2_H
#define DAIRLLM_LANES_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "block_formats.h"

#define LANES static inline __attribute__((always_inline, unused))
#define UNROLL_ROWS _Pragma("GCC unroll 16")
enum { FLOAT_ROWS = 6 };
#define FLOAT_ROWS_CASES SIX_ROWS

typedef struct { __m256 a, b; } f32x16;
typedef struct { __m256i a, b; } i32x16;
typedef struct { __m256i a, b; } u8x64;

#define F32X16(first, second) ((f32x16){(first), (second)})
#define I32X16(first, second) ((i32x16){(first), (second)})

/* All ones in the first n lanes of eight. */
LANES __m256i first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

LANES f32x16 f32x16_load(const float* from) { return F32X16(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)); }
LANES f32x16 f32x16_load_partial(const float* from, int n) {
    return F32X16(_mm256_maskload_ps(from, first_lanes(n)), n > 8 ? _mm256_maskload_ps(from + 8, first_lanes(n - 8)) : _mm256_setzero_ps());
}
LANES void f32x16_store(float* to, f32x16 x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}
LANES void f32x16_store_partial(float* to, f32x16 x, int n) {
    _mm256_maskstore_ps(to, first_lanes(n), x.a);
    if (n > 8) {
        _mm256_maskstore_ps(to + 8, first_lanes(n - 8), x.b);
    }
}
LANES f32x16 f32x16_set1(float x) { return F32X16(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
LANES f32x16 f32x16_zero(void) { return F32X16(_mm256_setzero_ps(), _mm256_setzero_ps()); }
LANES f32x16 f32x16_add(f32x16 x, f32x16 y) { return F32X16(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
LANES f32x16 f32x16_sub(f32x16 x, f32x16 y) { return F32X16(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
LANES f32x16 f32x16_mul(f32x16 x, f32x16 y) { return F32X16(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
LANES f32x16 f32x16_div(f32x16 x, f32x16 y) { return F32X16(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
LANES f32x16 f32x16_min(f32x16 x, f32x16 y) { return F32X16(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
LANES f32x16 f32x16_max(f32x16 x, f32x16 y) { return F32X16(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
LANES f32x16 f32x16_fma(f32x16 x, f32x16 y, f32x16 z) {
    return F32X16(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
LANES f32x16 f32x16_sqrt(f32x16 x) { return F32X16(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)); }
LANES f32x16 f32x16_abs(f32x16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return F32X16(_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b));
}
LANES f32x16 f32x16_neg(f32x16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return F32X16(_mm256_xor_ps(sign, x.a), _mm256_xor_ps(sign, x.b));
}
LANES f32x16 f32x16_round_even(f32x16 x) {
    enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return F32X16(_mm256_round_ps(x.a, MODE), _mm256_round_ps(x.b, MODE));
}
LANES f32x16 f32x16_select_gt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return F32X16(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
                  _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ)));
}
LANES f32x16 f32x16_from_f16(const uint16_t* from) {
    return F32X16(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8))));
}
LANES f32x16 f32x16_from_f16_partial(const uint16_t* from, int n) {
    uint16_t all[16] = {0};
    memcpy(all, from, (size_t)n * sizeof *from);
    return f32x16_from_f16(all);
}
LANES void f32x16_to_f16(uint16_t* to, f32x16 x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(to + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
LANES __m256 f32x8_from_bf16(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16));
}
LANES f32x16 f32x16_from_bf16(const uint16_t* from) { return F32X16(f32x8_from_bf16(from), f32x8_from_bf16(from + 8)); }
LANES f32x16 f32x16_from_s8(const int8_t* from) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)from);
    return F32X16(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
LANES f32x16 f32x16_from_i32(i32x16 x) { return F32X16(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)); }
LANES f32x16 f32x16_from_bits(i32x16 x) { return F32X16(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)); }
LANES i32x16 f32x16_to_i32(f32x16 x) { return I32X16(_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)); }
LANES i32x16 f32x16_bits(f32x16 x) { return I32X16(_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)); }
LANES __m256 power_of_2(__m256i e) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)); }
LANES f32x16 f32x16_scale2(f32x16 x, i32x16 e) { return f32x16_mul(x, F32X16(power_of_2(e.a), power_of_2(e.b))); }
LANES float f32x16_reduce_add(f32x16 x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LANES float f32x16_reduce_max(f32x16 x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

LANES i32x16 i32x16_load(const int32_t* from) {
    return I32X16(_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 8)));
}
LANES void i32x16_store(int32_t* to, i32x16 x) {
    _mm256_storeu_si256((__m256i*)to, x.a);
    _mm256_storeu_si256((__m256i*)(to + 8), x.b);
}
LANES i32x16 i32x16_set1(int32_t x) { return I32X16(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
LANES i32x16 i32x16_zero(void) { return I32X16(_mm256_setzero_si256(), _mm256_setzero_si256()); }
LANES i32x16 i32x16_add(i32x16 x, i32x16 y) { return I32X16(_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)); }
LANES i32x16 i32x16_or(i32x16 x, i32x16 y) { return I32X16(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)); }
LANES i32x16 i32x16_bits(i32x16 x, int shift, uint32_t mask) {
    const __m256i bits = _mm256_set1_epi32((int)mask);
    return I32X16(_mm256_and_si256(_mm256_srli_epi32(x.a, shift), bits), _mm256_and_si256(_mm256_srli_epi32(x.b, shift), bits));
}
LANES i32x16 i32x16_shift_left(i32x16 x, int shift) { return I32X16(_mm256_slli_epi32(x.a, shift), _mm256_slli_epi32(x.b, shift)); }
LANES i32x16 i32x16_from_u8(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)from);
    return I32X16(_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
}
LANES i32x16 i32x16_from_u16(const uint8_t* from) {
    return I32X16(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(from + 16))));
}
LANES i32x16 i32x16_max(i32x16 x, i32x16 y) { return I32X16(_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)); }
LANES int32_t i32x16_reduce_add(i32x16 x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
LANES int32_t i32x16_reduce_max(i32x16 x) {
    const __m256i eight = _mm256_max_epi32(x.a, x.b);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
LANES void i32x16_store_s8(int8_t* to, i32x16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128((__m128i*)to, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

LANES u8x64 u8x64_load(const uint8_t* from) {
    return (u8x64){_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 32))};
}
LANES void u8x64_store(uint8_t* to, u8x64 x) {
    _mm256_storeu_si256((__m256i*)to, x.a);
    _mm256_storeu_si256((__m256i*)(to + 32), x.b);
}
/* Bytes are shifted as halves of 16 bits: what comes in from the neighbour is masked off, or is zero. */
LANES u8x64 u8x64_bits(u8x64 x, int shift, int mask) {
    const __m256i bits = _mm256_set1_epi8((char)mask);
    return (u8x64){_mm256_and_si256(_mm256_srli_epi16(x.a, shift), bits), _mm256_and_si256(_mm256_srli_epi16(x.b, shift), bits)};
}
LANES u8x64 u8x64_shift_left(u8x64 x, int shift) { return (u8x64){_mm256_slli_epi16(x.a, shift), _mm256_slli_epi16(x.b, shift)}; }
LANES u8x64 u8x64_or(u8x64 x, u8x64 y) { return (u8x64){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
LANES u8x64 u8x64_lookup(const int8_t table[16], u8x64 places) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (u8x64){_mm256_shuffle_epi8(values, places.a), _mm256_shuffle_epi8(values, places.b)};
}

LANES __m256i pairs_from_u8x8(__m256i x, int offset) { /* bytes 0 and 1 of each lane to bytes 0 and 2 */
    const __m256i spread = _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi32(255)), _mm256_slli_epi32(_mm256_srli_epi32(x, 8), 16));
    return _mm256_sub_epi16(spread, _mm256_set1_epi16((short)offset));
}
LANES i32x16 pairs_from_u8(i32x16 x, int offset) { return I32X16(pairs_from_u8x8(x.a, offset), pairs_from_u8x8(x.b, offset)); }
LANES __m256i pairs_from_s8x8(__m256i x) { /* both bytes to the upper bytes of their halves, then down again with their sign */
    return _mm256_srai_epi16(_mm256_or_si256(_mm256_slli_epi16(x, 8), _mm256_slli_epi32(_mm256_srli_epi32(x, 8), 24)), 8);
}
LANES i32x16 pairs_from_s8(i32x16 x) { return I32X16(pairs_from_s8x8(x.a), pairs_from_s8x8(x.b)); }
LANES i32x16 pairs_shift_left(i32x16 x, int shift) { return I32X16(_mm256_slli_epi16(x.a, shift), _mm256_slli_epi16(x.b, shift)); }
LANES i32x16 pairs_dot(i32x16 x, int32_t pair) {
    const __m256i y = _mm256_set1_epi32(pair);
    return I32X16(_mm256_madd_epi16(x.a, y), _mm256_madd_epi16(x.b, y));
}

#endif
