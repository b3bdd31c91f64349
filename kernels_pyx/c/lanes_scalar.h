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
/* Rows that a matmul computes at once; how many of their integer dot products are in progress together; up to how many rows weights are
   unpacked for each group anew. */
enum { QUANT_ROWS = 4, FLOAT_ROWS = 4, DOT_ROWS = 1, DIRECT_ROWS = 2 };
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
LANES i32x16 i32x16_or(i32x16 a, i32x16 b) { EACH_INT_LANE(a.v[i] | b.v[i]); }
/* (a >> shift) & mask, and a << shift, of unsigned 32 bits. */
LANES i32x16 i32x16_bits(i32x16 a, int shift, uint32_t mask) { EACH_INT_LANE((int32_t)((uint32_t)a.v[i] >> shift & mask)); }
LANES i32x16 i32x16_shift_left(i32x16 a, int shift) { EACH_INT_LANE((int32_t)((uint32_t)a.v[i] << shift)); }
LANES i32x16 i32x16_from_u8(const uint8_t* from) { EACH_INT_LANE(from[i]); }
LANES i32x16 i32x16_from_u16(const uint8_t* from) { EACH_INT_LANE(load_u16(from + 2 * i)); }
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
LANES void u8x64_store(uint8_t* to, u8x64 a) { memcpy(to, a.v, sizeof a.v); }
#define EACH_BYTE(expression)       \
    u8x64 out;                      \
    for (int i = 0; i < 64; i++) {  \
        out.v[i] = (expression);    \
    }                               \
    return out
/* (byte >> shift) & mask, where the mask has no more bits than the shift leaves; byte << shift, where no bit is lost. */
LANES u8x64 u8x64_bits(u8x64 a, int shift, int mask) { EACH_BYTE((uint8_t)(a.v[i] >> shift & mask)); }
LANES u8x64 u8x64_shift_left(u8x64 a, int shift) { EACH_BYTE((uint8_t)(a.v[i] << shift)); }
LANES u8x64 u8x64_or(u8x64 a, u8x64 b) { EACH_BYTE(a.v[i] | b.v[i]); }
/* table[byte], for bytes below 16. */
LANES u8x64 u8x64_lookup(const int8_t table[16], u8x64 places) { EACH_BYTE((uint8_t)table[places.v[i] & 15]); }

/* A lane of i32x16 as a pair of int16: the lower half is of inputs 0..15 of a block, the upper of 16..31. */
LANES int16_t lower_half(int32_t pair) { return (int16_t)(uint16_t)pair; }
LANES int16_t upper_half(int32_t pair) { return (int16_t)(uint16_t)((uint32_t)pair >> 16); }
LANES int32_t pair_of(int lower, int upper) { return (int32_t)((uint32_t)(uint16_t)lower | (uint32_t)(uint16_t)upper << 16); }
/* From the two lowest bytes of each lane (the others are zero), less `offset`; the same with signed bytes. */
LANES i32x16 pairs_from_u8(i32x16 a, int offset) { EACH_INT_LANE(pair_of((a.v[i] & 255) - offset, (a.v[i] >> 8) - offset)); }
LANES i32x16 pairs_from_s8(i32x16 a) { EACH_INT_LANE(pair_of((int8_t)(uint8_t)a.v[i], (int8_t)(uint8_t)(a.v[i] >> 8))); }
/* Both halves << shift; nothing overflows. */
LANES i32x16 pairs_shift_left(i32x16 a, int shift) { EACH_INT_LANE(pair_of(lower_half(a.v[i]) * (1 << shift), upper_half(a.v[i]) * (1 << shift))); }
/* lower * lower of `pair` + upper * upper */
LANES i32x16 pairs_dot(i32x16 a, int32_t pair) {
    EACH_INT_LANE(lower_half(a.v[i]) * lower_half(pair) + upper_half(a.v[i]) * upper_half(pair));
}

/* Integer dot products of 32 inputs with weights of 4 or 5 bits (0..15, 0..31), or of 8 (-128..127, in the form that s8_operand makes of
   them): lane += sum over j of weight[4*lane + j] * activation byte j, in eight steps, then dot_total. Exact for all such weights and
   activations within -127..127. `start` is the value that a lane begins with, and is given to begin and to total alike (an instruction
   set adds it where it is cheapest). */
typedef i32x16 dot32;
enum { DOT_S8_OFFSET = 0 }; /* for 8 bits `start` has DOT_S8_OFFSET times the sum of the 32 activations in it */

LANES u8x64 s8_operand(u8x64 w) { return w; }
LANES int dot_weight(int bits, uint8_t w) { return bits == 8 ? (int8_t)w : w; }
LANES i32x16 add_products(int bits, i32x16 acc, u8x64 w, int32_t a4) {
    int8_t a[4];
    memcpy(a, &a4, sizeof a);
    EACH_INT_LANE(acc.v[i] + dot_weight(bits, w.v[4 * i]) * a[0] + dot_weight(bits, w.v[4 * i + 1]) * a[1] +
                  dot_weight(bits, w.v[4 * i + 2]) * a[2] + dot_weight(bits, w.v[4 * i + 3]) * a[3]);
}
LANES dot32 dot_begin(int bits, int32_t start) {
    (void)bits;
    return i32x16_set1(start);
}
LANES dot32 dot_add(int bits, int step, dot32 acc, u8x64 w, int32_t a4) {
    (void)step;
    return add_products(bits, acc, w, a4);
}
LANES i32x16 dot_total(int bits, dot32 acc, int32_t start) {
    (void)bits;
    (void)start;
    return acc;
}

/* Sub-blocks of 16 inputs: acc + scale * sum of products, with weights of 2, 3 or 6 bits (0..3, 0..7, 0..63) in VECTORS_AT_ONCE of its four vectors.
   half_scales gives the scales of one half (0 or 1) in the form that add_scaled_dots takes. */
enum { VECTORS_AT_ONCE = 4 };
LANES i32x16 half_scales(i32x16 pairs, int half) { EACH_INT_LANE(half ? upper_half(pairs.v[i]) : lower_half(pairs.v[i])); }
LANES i32x16 add_scaled_dots(i32x16 acc, const u8x64 w[4], const int32_t a[4], i32x16 scales) {
    i32x16 products = i32x16_zero();
    for (int v = 0; v < 4; v++) {
        products = add_products(6, products, w[v], a[v]);
    }
    EACH_INT_LANE(acc.v[i] + scales.v[i] * products.v[i]);
}

#endif
