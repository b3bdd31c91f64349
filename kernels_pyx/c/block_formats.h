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

enum {
    FORMAT_F32,
    FORMAT_F16,
    FORMAT_BF16,
    FORMAT_Q4_0,
    FORMAT_Q4_1,
    FORMAT_Q5_0,
    FORMAT_Q5_1,
    FORMAT_Q8_0,
    FORMAT_Q2_K,
    FORMAT_Q3_K,
    FORMAT_Q4_K,
    FORMAT_Q5_K,
    FORMAT_Q6_K,
    FORMAT_IQ4_NL,
    FORMAT_IQ4_XS,
    FORMAT_MXFP4,
    FORMAT_TQ2_0,
    NUM_FORMATS
};

#define EACH_QUANTISED_FORMAT(CASE)                                                                                                      \
    CASE(FORMAT_Q4_0) CASE(FORMAT_Q4_1) CASE(FORMAT_Q5_0) CASE(FORMAT_Q5_1) CASE(FORMAT_Q8_0) CASE(FORMAT_Q2_K) CASE(FORMAT_Q3_K)        \
    CASE(FORMAT_Q4_K) CASE(FORMAT_Q5_K) CASE(FORMAT_Q6_K) CASE(FORMAT_IQ4_NL) CASE(FORMAT_IQ4_XS) CASE(FORMAT_MXFP4) CASE(FORMAT_TQ2_0)
#define EACH_FORMAT(CASE) CASE(FORMAT_F32) CASE(FORMAT_F16) CASE(FORMAT_BF16) EACH_QUANTISED_FORMAT(CASE)

enum { TILE_OUTPUTS = 16, QUANT_BLOCK = 32, SUPER_BLOCK = 256, LARGEST_BLOCK_BYTES = 210 };

/* A block is `num_numbers` numbers (the value itself, scales) and `num_words` groups of four bytes; a tile interleaves both, output by output. */
typedef struct {
    const char* name;
    int block_size;  /* inputs per block */
    int block_bytes; /* bytes per block */
    int number_bytes, num_numbers, numbers_at;
    int num_words, words_at;
} block_format;

/* Bytes as https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h has them; docs/kernels.md says what they stand for. */
static const block_format BLOCK_FORMATS[NUM_FORMATS] = {
    [FORMAT_F32] = {"F32", 1, 4, 4, 1, 0, 0, 0},
    [FORMAT_F16] = {"F16", 1, 2, 2, 1, 0, 0, 0},
    [FORMAT_BF16] = {"BF16", 1, 2, 2, 1, 0, 0, 0},
    [FORMAT_Q4_0] = {"Q4_0", QUANT_BLOCK, 18, 2, 1, 0, 4, 2},     /* f16 scale, nibbles: input i low, 16+i high in byte i; 8 is zero */
    [FORMAT_Q4_1] = {"Q4_1", QUANT_BLOCK, 20, 2, 2, 0, 4, 4},     /* f16 scale, f16 minimum, nibbles as in Q4_0 */
    [FORMAT_Q5_0] = {"Q5_0", QUANT_BLOCK, 22, 2, 1, 0, 5, 2},     /* f16 scale, u32 of fifth bits, nibbles as in Q4_0; 16 is zero */
    [FORMAT_Q5_1] = {"Q5_1", QUANT_BLOCK, 24, 2, 2, 0, 5, 4},     /* f16 scale, f16 minimum, the rest as in Q5_0 */
    [FORMAT_Q8_0] = {"Q8_0", QUANT_BLOCK, 34, 2, 1, 0, 8, 2},     /* f16 scale, 32 int8 */
    [FORMAT_Q2_K] = {"Q2_K", SUPER_BLOCK, 84, 2, 2, 80, 20, 0},   /* 16 bytes of scale and minimum, 64 of 2 bits; f16 scale, f16 minimum */
    [FORMAT_Q3_K] = {"Q3_K", SUPER_BLOCK, 110, 2, 1, 108, 27, 0}, /* 32 bytes of third bits, 64 of 2 bits, 16 scales of 6 bits; f16 scale */
    [FORMAT_Q4_K] = {"Q4_K", SUPER_BLOCK, 144, 2, 2, 0, 35, 4},   /* f16 scale, f16 minimum; 8 scales and minima of 6 bits, 128 of nibbles */
    [FORMAT_Q5_K] = {"Q5_K", SUPER_BLOCK, 176, 2, 2, 0, 43, 4},   /* the same with 32 bytes of fifth bits before the nibbles */
    [FORMAT_Q6_K] = {"Q6_K", SUPER_BLOCK, 210, 2, 1, 208, 52, 0}, /* 128 bytes of nibbles, 64 of upper 2 bits, 16 int8 scales; f16 scale */
    [FORMAT_IQ4_NL] = {"IQ4_NL", QUANT_BLOCK, 18, 2, 1, 0, 4, 2}, /* f16 scale, nibbles as in Q4_0: places in IQ4_VALUES */
    [FORMAT_IQ4_XS] = {"IQ4_XS", SUPER_BLOCK, 136, 2, 2, 0, 33, 4}, /* f16 scale, u16 and 4 bytes of 8 scales; 8 times 16 nibbles as IQ4_NL */
    [FORMAT_MXFP4] = {"MXFP4", QUANT_BLOCK, 17, 1, 1, 0, 4, 1},   /* e8m0 scale, nibbles as in Q4_0: places in MXFP4_VALUES */
    [FORMAT_TQ2_0] = {"TQ2_0", SUPER_BLOCK, 66, 2, 1, 64, 16, 0}, /* 64 bytes of 2 bits as in Q2_K, 1 is zero; f16 scale */
};

/* What nibbles stand for. Those of MXFP4 are doubled, and its scale is halved. */
static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

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

/* Half of 2^(exponent - 127), also where that is subnormal. */
static inline float half_of_e8m0(uint8_t exponent) {
    return f32_from_bits(exponent < 2 ? 0x00200000u << exponent : (uint32_t)(exponent - 1) << 23);
}

static inline uint16_t load_u16(const uint8_t* from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline uint32_t load_u32(const uint8_t* from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store_u32(uint8_t* to, uint32_t value) { memcpy(to, &value, sizeof value); }

static inline void store_u16(uint8_t* to, uint16_t value) { memcpy(to, &value, sizeof value); }

#endif
