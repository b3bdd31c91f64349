/* The block formats of weights, their byte layouts in GGUF files, and conversions of single f16 and bf16 numbers.
   These conversions give the same bits as the instructions of F16C, NaN included. */
#ifndef DAIRLLM_BLOCK_FORMATS_H
#define DAIRLLM_BLOCK_FORMATS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layouts of files and frames are little-endian, and so must be the machine"
#endif

enum { FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_Q4_0, FORMAT_Q4_1, FORMAT_Q8_0, NUM_FORMATS };

enum { TILE_OUTPUTS = 16, QUANT_BLOCK = 32 };

typedef struct {
    const char* name;
    int block_size;  /* inputs per block */
    int block_bytes; /* bytes per block */
} block_format;

static const block_format BLOCK_FORMATS[NUM_FORMATS] = {
    [FORMAT_F32] = {"F32", 1, 4},
    [FORMAT_F16] = {"F16", 1, 2},
    [FORMAT_BF16] = {"BF16", 1, 2},
    [FORMAT_Q4_0] = {"Q4_0", QUANT_BLOCK, 18}, /* f16 scale, 16 bytes: input i in the low, 16+i in the high nibble of byte i; 8 is zero */
    [FORMAT_Q4_1] = {"Q4_1", QUANT_BLOCK, 20}, /* f16 scale, f16 minimum, nibbles as in Q4_0 */
    [FORMAT_Q8_0] = {"Q8_0", QUANT_BLOCK, 34}, /* f16 scale, 32 int8 */
};

static inline float f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float f32_from_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u;
    const uint32_t mantissa = half & 0x3ffu;
    if (exponent == 31) {
        return f32_from_bits(sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0));
    }
    if (exponent == 0) { /* subnormal: mantissa * 2^-24, exact in f32 */
        return f32_from_bits(sign | f32_bits((float)mantissa * 0x1p-24f));
    }
    return f32_from_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
}

static inline uint16_t f16_from_f32(float value) { /* to nearest, ties to even; overflow gives infinity */
    const uint32_t bits = f32_bits(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { /* 65520 and more */
        return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: the FPU rounds at the last bit of a subnormal, 2^-24 */
        return (uint16_t)(sign | (f32_bits(f32_from_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

static inline float f32_from_bf16(uint16_t value) { return f32_from_bits((uint32_t)value << 16); }

static inline uint16_t load_u16(const uint8_t* from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store_u16(uint8_t* to, uint16_t value) { memcpy(to, &value, sizeof value); }

#endif
