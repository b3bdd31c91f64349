/* Sixteen lanes as four registers of NEON (AArch64). lanes_scalar.h defines what each function does; min, max and selections are comparisons,
   since those of NEON treat NaN and zeros in their own way. Integer dot products come from dots_neon.h. */
#ifndef DAIRLLM_LANES_NEON_H
#define DAIRLLM_LANES_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "block_formats.h"

#define LANES static inline __attribute__((always_inline, unused))
#define UNROLL_ROWS _Pragma("GCC unroll 16")
enum { FLOAT_ROWS = 4 };
#define FLOAT_ROWS_CASES FEW_ROWS

typedef struct { float32x4_t r[4]; } f32x16;
typedef struct { int32x4_t r[4]; } i32x16;
typedef struct { uint8x16_t r[4]; } u8x64;

/* Each of the four registers i. */
#define F32_LANES(expression) ((f32x16){{ F32_PART(expression, 0), F32_PART(expression, 1), F32_PART(expression, 2), F32_PART(expression, 3) }})
#define F32_PART(expression, n) ({ enum { i = n }; (float32x4_t)(expression); })
#define I32_LANES(expression) ((i32x16){{ I32_PART(expression, 0), I32_PART(expression, 1), I32_PART(expression, 2), I32_PART(expression, 3) }})
#define I32_PART(expression, n) ({ enum { i = n }; (int32x4_t)(expression); })
#define U8_LANES(expression) ((u8x64){{ U8_PART(expression, 0), U8_PART(expression, 1), U8_PART(expression, 2), U8_PART(expression, 3) }})
#define U8_PART(expression, n) ({ enum { i = n }; (uint8x16_t)(expression); })

LANES f32x16 f32x16_load(const float* from) { return F32_LANES(vld1q_f32(from + 4 * i)); }
LANES f32x16 f32x16_load_partial(const float* from, int n) {
    float all[16] = {0};
    memcpy(all, from, (size_t)n * sizeof *from);
    return f32x16_load(all);
}
LANES void f32x16_store(float* to, f32x16 x) {
    for (int i = 0; i < 4; i++) {
        vst1q_f32(to + 4 * i, x.r[i]);
    }
}
LANES void f32x16_store_partial(float* to, f32x16 x, int n) {
    float all[16];
    f32x16_store(all, x);
    memcpy(to, all, (size_t)n * sizeof *to);
}
LANES f32x16 f32x16_set1(float x) { return F32_LANES(vdupq_n_f32(x)); }
LANES f32x16 f32x16_zero(void) { return f32x16_set1(0.0f); }
LANES f32x16 f32x16_add(f32x16 x, f32x16 y) { return F32_LANES(vaddq_f32(x.r[i], y.r[i])); }
LANES f32x16 f32x16_sub(f32x16 x, f32x16 y) { return F32_LANES(vsubq_f32(x.r[i], y.r[i])); }
LANES f32x16 f32x16_mul(f32x16 x, f32x16 y) { return F32_LANES(vmulq_f32(x.r[i], y.r[i])); }
LANES f32x16 f32x16_div(f32x16 x, f32x16 y) { return F32_LANES(vdivq_f32(x.r[i], y.r[i])); }
LANES float32x4_t f32x4_min(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
LANES float32x4_t f32x4_max(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
LANES f32x16 f32x16_min(f32x16 x, f32x16 y) { return F32_LANES(f32x4_min(x.r[i], y.r[i])); }
LANES f32x16 f32x16_max(f32x16 x, f32x16 y) { return F32_LANES(f32x4_max(x.r[i], y.r[i])); }
LANES f32x16 f32x16_fma(f32x16 x, f32x16 y, f32x16 z) { return F32_LANES(vfmaq_f32(z.r[i], x.r[i], y.r[i])); }
LANES f32x16 f32x16_sqrt(f32x16 x) { return F32_LANES(vsqrtq_f32(x.r[i])); }
LANES f32x16 f32x16_abs(f32x16 x) { return F32_LANES(vabsq_f32(x.r[i])); }
LANES f32x16 f32x16_neg(f32x16 x) { return F32_LANES(vnegq_f32(x.r[i])); }
LANES f32x16 f32x16_round_even(f32x16 x) { return F32_LANES(vrndnq_f32(x.r[i])); }
LANES f32x16 f32x16_select_gt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return F32_LANES(vbslq_f32(vcgtq_f32(a.r[i], b.r[i]), x.r[i], y.r[i]));
}
LANES f32x16 f32x16_from_f16(const uint16_t* from) { return F32_LANES(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)))); }
LANES f32x16 f32x16_from_f16_partial(const uint16_t* from, int n) {
    uint16_t all[16] = {0};
    memcpy(all, from, (size_t)n * sizeof *from);
    return f32x16_from_f16(all);
}
LANES void f32x16_to_f16(uint16_t* to, f32x16 x) {
    for (int i = 0; i < 4; i++) {
        vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.r[i])));
    }
}
LANES f32x16 f32x16_from_bf16(const uint16_t* from) { return F32_LANES(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16))); }
LANES f32x16 f32x16_from_i32(i32x16 x) { return F32_LANES(vcvtq_f32_s32(x.r[i])); }
LANES f32x16 f32x16_from_bits(i32x16 x) { return F32_LANES(vreinterpretq_f32_s32(x.r[i])); }
LANES f32x16 f32x16_from_s8(const int8_t* from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return f32x16_from_i32((i32x16){{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}});
}
LANES i32x16 f32x16_to_i32(f32x16 x) { return I32_LANES(vcvtq_s32_f32(x.r[i])); }
LANES i32x16 f32x16_bits(f32x16 x) { return I32_LANES(vreinterpretq_s32_f32(x.r[i])); }
LANES f32x16 f32x16_scale2(f32x16 x, i32x16 e) {
    return F32_LANES(vmulq_f32(x.r[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e.r[i], vdupq_n_s32(127)), 23))));
}
LANES float f32x16_reduce_add(f32x16 x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.r[0], x.r[2]), vaddq_f32(x.r[1], x.r[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
LANES float f32x16_reduce_max(f32x16 x) {
    float32x4_t most = f32x4_max(f32x4_max(x.r[0], x.r[2]), f32x4_max(x.r[1], x.r[3]));
    most = f32x4_max(most, vextq_f32(most, most, 2));
    return vgetq_lane_f32(f32x4_max(most, vextq_f32(most, most, 1)), 0);
}

LANES i32x16 i32x16_load(const int32_t* from) { return I32_LANES(vld1q_s32(from + 4 * i)); }
LANES void i32x16_store(int32_t* to, i32x16 x) {
    for (int i = 0; i < 4; i++) {
        vst1q_s32(to + 4 * i, x.r[i]);
    }
}
LANES i32x16 i32x16_set1(int32_t x) { return I32_LANES(vdupq_n_s32(x)); }
LANES i32x16 i32x16_zero(void) { return i32x16_set1(0); }
LANES i32x16 i32x16_add(i32x16 x, i32x16 y) { return I32_LANES(vaddq_s32(x.r[i], y.r[i])); }
LANES i32x16 i32x16_or(i32x16 x, i32x16 y) { return I32_LANES(vorrq_s32(x.r[i], y.r[i])); }
LANES uint32x4_t u32x4_shift(int32x4_t x, int left) { return vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(left)); }
LANES i32x16 i32x16_bits(i32x16 x, int shift, uint32_t mask) {
    return I32_LANES(vreinterpretq_s32_u32(vandq_u32(u32x4_shift(x.r[i], -shift), vdupq_n_u32(mask))));
}
LANES i32x16 i32x16_shift_left(i32x16 x, int shift) { return I32_LANES(vreinterpretq_s32_u32(u32x4_shift(x.r[i], shift))); }
LANES i32x16 i32x16_from_halves(uint16x8_t low, uint16x8_t high) {
    return (i32x16){{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
                     vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))}};
}
LANES i32x16 i32x16_from_u8(const uint8_t* from) {
    const uint8x16_t bytes = vld1q_u8(from);
    return i32x16_from_halves(vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
}
LANES i32x16 i32x16_from_u16(const uint8_t* from) {
    return i32x16_from_halves(vreinterpretq_u16_u8(vld1q_u8(from)), vreinterpretq_u16_u8(vld1q_u8(from + 16)));
}
LANES i32x16 i32x16_max(i32x16 x, i32x16 y) { return I32_LANES(vmaxq_s32(x.r[i], y.r[i])); }
LANES int32_t i32x16_reduce_add(i32x16 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.r[0], x.r[1]), vaddq_s32(x.r[2], x.r[3]))); }
LANES int32_t i32x16_reduce_max(i32x16 x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.r[0], x.r[1]), vmaxq_s32(x.r[2], x.r[3]))); }
LANES void i32x16_store_s8(int8_t* to, i32x16 x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.r[0]), vmovn_s32(x.r[1])), high = vcombine_s16(vmovn_s32(x.r[2]), vmovn_s32(x.r[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

LANES u8x64 u8x64_load(const uint8_t* from) { return U8_LANES(vld1q_u8(from + 16 * i)); }
LANES void u8x64_store(uint8_t* to, u8x64 x) {
    for (int i = 0; i < 4; i++) {
        vst1q_u8(to + 16 * i, x.r[i]);
    }
}
LANES u8x64 u8x64_bits(u8x64 x, int shift, int mask) {
    return U8_LANES(vandq_u8(vshlq_u8(x.r[i], vdupq_n_s8((int8_t)-shift)), vdupq_n_u8((uint8_t)mask)));
}
LANES u8x64 u8x64_shift_left(u8x64 x, int shift) { return U8_LANES(vshlq_u8(x.r[i], vdupq_n_s8((int8_t)shift))); }
LANES u8x64 u8x64_or(u8x64 x, u8x64 y) { return U8_LANES(vorrq_u8(x.r[i], y.r[i])); }
LANES u8x64 u8x64_lookup(const int8_t table[16], u8x64 places) {
    const int8x16_t values = vld1q_s8(table);
    return U8_LANES(vreinterpretq_u8_s8(vqtbl1q_s8(values, places.r[i])));
}

LANES int32x4_t pairs_from_u8x4(uint32x4_t x, int offset) { /* bytes 0 and 1 of each lane to bytes 0 and 2 */
    const uint32x4_t spread = vorrq_u32(vandq_u32(x, vdupq_n_u32(255)), vshlq_n_u32(vshrq_n_u32(x, 8), 16));
    return vreinterpretq_s32_s16(vsubq_s16(vreinterpretq_s16_u32(spread), vdupq_n_s16((int16_t)offset)));
}
LANES i32x16 pairs_from_u8(i32x16 x, int offset) { return I32_LANES(pairs_from_u8x4(vreinterpretq_u32_s32(x.r[i]), offset)); }
LANES int32x4_t pairs_from_s8x4(uint32x4_t x) { /* both bytes to the upper bytes of their halves, then down again with their sign */
    const uint32x4_t upper = vorrq_u32(vandq_u32(vshlq_n_u32(x, 8), vdupq_n_u32(0xff00)), vshlq_n_u32(vshrq_n_u32(x, 8), 24));
    return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_u32(upper), 8));
}
LANES i32x16 pairs_from_s8(i32x16 x) { return I32_LANES(pairs_from_s8x4(vreinterpretq_u32_s32(x.r[i]))); }
LANES i32x16 pairs_shift_left(i32x16 x, int shift) {
    return I32_LANES(vreinterpretq_s32_s16(vshlq_s16(vreinterpretq_s16_s32(x.r[i]), vdupq_n_s16((int16_t)shift))));
}
LANES int32x4_t pairs_dot_x4(int16x8_t x, int16x8_t y) { return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)); }
LANES i32x16 pairs_dot(i32x16 x, int32_t pair) {
    const int16x8_t y = vreinterpretq_s16_s32(vdupq_n_s32(pair));
    return I32_LANES(pairs_dot_x4(vreinterpretq_s16_s32(x.r[i]), y));
}

#endif
