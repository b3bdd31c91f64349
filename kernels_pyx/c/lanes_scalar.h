/* Sixteen lanes in plain C. This file defines the arithmetic: the other lanes_*.h give the same bits lane by lane.
   Where x86 would have a choice it is fixed here: min and max give the second operand if one is NaN or both are zero. */
#ifndef DAIRLLM_LANES_SCALAR_H
#define DAIRLLM_LANES_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "block_formats.h"

#define LANES static inline __attribute__((always_inline, unused))
#define UNROLL_ROWS
/* Rows that a matmul computes at once, and how many of their integer dot products are in progress together. */
enum { QUANT_ROWS = 4, FLOAT_ROWS = 4, DOT_ROWS = 1 };
#define QUANT_ROWS_CASES FEW_ROWS
#define FLOAT_ROWS_CASES FEW_ROWS

typedef struct { float v[16]; } f32x16;
typedef struct { int32_t v[16]; } i32x16;
typedef struct { uint8_t v[64]; } u8x64;

#define EACH_LANE(expression)        \
    f32x16 out;                      \
    for (int i = 0; i < 16; i++) {   \
        out.v[i] = (expression);     \
    }                                \
    return out
#define EACH_INT_LANE(expression)    \
    i32x16 out;                      \
    for (int i = 0; i < 16; i++) {   \
        out.v[i] = (expression);     \
    }                                \
    return out

LANES f32x16 f32x16_load(const float* from) { EACH_LANE(from[i]); }
LANES f32x16 f32x16_load_partial(const float* from, int n) { EACH_LANE(i < n ? from[i] : 0.0f); }
LANES void f32x16_store(float* to, f32x16 a) { memcpy(to, a.v, sizeof a.v); }
LANES void f32x16_store_partial(float* to, f32x16 a, int n) {
    for (int i = 0; i < n; i++) {
        to[i] = a.v[i];
    }
}
LANES f32x16 f32x16_set1(float a) { EACH_LANE(a); }
LANES f32x16 f32x16_zero(void) { return f32x16_set1(0.0f); }
LANES f32x16 f32x16_add(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] + b.v[i]); }
LANES f32x16 f32x16_sub(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] - b.v[i]); }
LANES f32x16 f32x16_mul(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] * b.v[i]); }
LANES f32x16 f32x16_div(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] / b.v[i]); }
LANES f32x16 f32x16_min(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
LANES f32x16 f32x16_max(f32x16 a, f32x16 b) { EACH_LANE(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
LANES f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) { EACH_LANE(fmaf(a.v[i], b.v[i], c.v[i])); }
LANES f32x16 f32x16_sqrt(f32x16 a) { EACH_LANE(sqrtf(a.v[i])); }
LANES f32x16 f32x16_abs(f32x16 a) { EACH_LANE(f32_from_bits(f32_bits(a.v[i]) & 0x7fffffffu)); }
LANES f32x16 f32x16_neg(f32x16 a) { EACH_LANE(f32_from_bits(f32_bits(a.v[i]) ^ 0x80000000u)); }
LANES f32x16 f32x16_round_even(f32x16 a) { EACH_LANE(rintf(a.v[i])); }
LANES f32x16 f32x16_select_gt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) { EACH_LANE(a.v[i] > b.v[i] ? x.v[i] : y.v[i]); }
/* Rows of f16 in a frame may lie at odd addresses. */
LANES uint16_t half_at(const uint16_t* from, int i) { return load_u16((const uint8_t*)from + 2 * i); }
LANES f32x16 f32x16_from_f16(const uint16_t* from) { EACH_LANE(f32_from_f16(half_at(from, i))); }
LANES f32x16 f32x16_from_f16_partial(const uint16_t* from, int n) { EACH_LANE(i < n ? f32_from_f16(half_at(from, i)) : 0.0f); }
LANES void f32x16_to_f16(uint16_t* to, f32x16 a) {
    for (int i = 0; i < 16; i++) {
        store_u16((uint8_t*)to + 2 * i, f16_from_f32(a.v[i]));
    }
}
LANES f32x16 f32x16_from_bf16(const uint16_t* from) { EACH_LANE(f32_from_bf16(half_at(from, i))); }
LANES f32x16 f32x16_from_s8(const int8_t* from) { EACH_LANE((float)from[i]); }
LANES f32x16 f32x16_from_i32(i32x16 a) { EACH_LANE((float)a.v[i]); }
LANES f32x16 f32x16_from_bits(i32x16 a) { EACH_LANE(f32_from_bits((uint32_t)a.v[i])); }
/* `a` is rounded already and its magnitude is below 2^31. */
LANES i32x16 f32x16_to_i32(f32x16 a) { EACH_INT_LANE((int32_t)a.v[i]); }
LANES i32x16 f32x16_bits(f32x16 a) { EACH_INT_LANE((int32_t)f32_bits(a.v[i])); }
/* a * 2^e for e from -126 to 127. */
LANES f32x16 f32x16_scale2(f32x16 a, i32x16 e) { EACH_LANE(a.v[i] * f32_from_bits((uint32_t)(e.v[i] + 127) << 23)); }
/* The fixed tree of every sum over lanes: lane i with lane i+8, then i+4, i+2, i+1. */
LANES float f32x16_reduce_add(f32x16 a) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            a.v[i] = a.v[i] + a.v[i + half];
        }
    }
    return a.v[0];
}
LANES float f32x16_reduce_max(f32x16 a) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
        }
    }
    return a.v[0];
}

LANES i32x16 i32x16_load(const int32_t* from) { EACH_INT_LANE(from[i]); }
LANES void i32x16_store(int32_t* to, i32x16 a) { memcpy(to, a.v, sizeof a.v); }
LANES i32x16 i32x16_set1(int32_t a) { EACH_INT_LANE(a); }
LANES i32x16 i32x16_zero(void) { return i32x16_set1(0); }
LANES i32x16 i32x16_add(i32x16 a, i32x16 b) { EACH_INT_LANE(a.v[i] + b.v[i]); }
LANES i32x16 i32x16_max(i32x16 a, i32x16 b) { EACH_INT_LANE(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
LANES int32_t i32x16_reduce_add(i32x16 a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) {
        sum += a.v[i];
    }
    return sum;
}
LANES int32_t i32x16_reduce_max(i32x16 a) {
    int32_t largest = a.v[0];
    for (int i = 1; i < 16; i++) {
        largest = a.v[i] > largest ? a.v[i] : largest;
    }
    return largest;
}
/* Lanes are within -128..127. */
LANES void i32x16_store_s8(int8_t* to, i32x16 a) {
    for (int i = 0; i < 16; i++) {
        to[i] = (int8_t)a.v[i];
    }
}

LANES u8x64 u8x64_load(const uint8_t* from) {
    u8x64 out;
    memcpy(out.v, from, sizeof out.v);
    return out;
}
LANES u8x64 u8x64_low_nibbles(u8x64 a) {
    for (int i = 0; i < 64; i++) {
        a.v[i] &= 15;
    }
    return a;
}
LANES u8x64 u8x64_high_nibbles(u8x64 a) {
    for (int i = 0; i < 64; i++) {
        a.v[i] >>= 4;
    }
    return a;
}

/* Integer dot products of 32 inputs: lane += sum over j of weight[4*lane + j] * activation byte j, eight times, then
   dot_*_total. Exact for all weights that the format can hold and activations within -127..127. `start` is the value
   that a lane begins with, and is given to begin and to total alike (an instruction set adds it where it is cheapest). */
typedef i32x16 dot_u4; /* weights 0..15 */
typedef i32x16 dot_s8; /* weights -128..127, in the form that s8_operand makes of them */
enum { DOT_S8_OFFSET = 0 }; /* dot_s8 wants `start` to have DOT_S8_OFFSET times the sum of the 32 activations added */

LANES i32x16 dot_u4_begin(int32_t start) { return i32x16_set1(start); }
LANES i32x16 dot_u4_add(i32x16 acc, u8x64 w, int32_t a4) {
    int8_t a[4];
    memcpy(a, &a4, sizeof a);
    EACH_INT_LANE(acc.v[i] + w.v[4 * i] * a[0] + w.v[4 * i + 1] * a[1] + w.v[4 * i + 2] * a[2] + w.v[4 * i + 3] * a[3]);
}
LANES i32x16 dot_u4_total(i32x16 acc, int32_t start) {
    (void)start;
    return acc;
}
LANES u8x64 s8_operand(u8x64 w) { return w; }
LANES i32x16 dot_s8_begin(int32_t start) { return i32x16_set1(start); }
LANES i32x16 dot_s8_add(i32x16 acc, u8x64 w, int32_t a4) {
    int8_t a[4], s[64];
    memcpy(a, &a4, sizeof a);
    memcpy(s, w.v, sizeof s);
    EACH_INT_LANE(acc.v[i] + s[4 * i] * a[0] + s[4 * i + 1] * a[1] + s[4 * i + 2] * a[2] + s[4 * i + 3] * a[3]);
}
LANES i32x16 dot_s8_total(i32x16 acc, int32_t start) {
    (void)start;
    return acc;
}

#endif
