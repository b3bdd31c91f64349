/* The layouts are those of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; what their bits stand for is told in docs/kernels.md.
   No instruction set matters here: it serves embedding rows and tests. */
#include "dequantize.h"

enum { HALF_BLOCK = QUANT_BLOCK / 2, SUPER_BLOCKS = SUPER_BLOCK / QUANT_BLOCK };

static float f16_at(const uint8_t* block, int at) { return f32_from_f16(load_u16(block + at)); }

static void dequantize_nibbles(float scale, float minimum, int offset, const uint8_t* nibbles, float* out) {
    for (int i = 0; i < HALF_BLOCK; i++) {
        out[i] = scale * (float)((nibbles[i] & 15) - offset) + minimum;
        out[i + HALF_BLOCK] = scale * (float)((nibbles[i] >> 4) - offset) + minimum;
    }
}

static void dequantize_places(float scale, const int8_t values[16], const uint8_t* nibbles, float* out) {
    for (int i = 0; i < HALF_BLOCK; i++) {
        out[i] = scale * (float)values[nibbles[i] & 15];
        out[i + HALF_BLOCK] = scale * (float)values[nibbles[i] >> 4];
    }
}

/* Q5_0 and Q5_1: nibbles whose fifth bit stands in the word before them. */
static void dequantize_five_bits(float scale, float minimum, int offset, const uint8_t* bits, float* out) {
    const uint32_t fifth = load_u32(bits);
    for (int i = 0; i < QUANT_BLOCK; i++) {
        const int nibble = bits[4 + i % HALF_BLOCK] >> i / HALF_BLOCK * 4 & 15;
        out[i] = scale * (float)((nibble | (int)(fifth >> i & 1u) << 4) - offset) + minimum;
    }
}

static void dequantize_bytes(float scale, const uint8_t* bytes, float* out) {
    for (int i = 0; i < QUANT_BLOCK; i++) {
        out[i] = scale * (float)(int8_t)bytes[i];
    }
}

static void dequantize_q2_k(const uint8_t* block, float* out) {
    const float scale = f16_at(block, 80), minimum = f16_at(block, 82);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        const int both = block[i / 16], bits = block[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
        out[i] = scale * (float)(both & 15) * (float)bits - minimum * (float)(both >> 4);
    }
}

static void dequantize_q3_k(const uint8_t* block, float* out) {
    const float scale = f16_at(block, 108);
    const uint8_t *const quants = block + 32, *const scales = block + 96;
    for (int i = 0; i < SUPER_BLOCK; i++) {
        const int s = i / 16, third = block[i % 32] >> i / 32 & 1, bits = quants[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
        const int six = (scales[s % 8] >> s / 8 * 4 & 15) | (scales[8 + s % 4] >> s / 4 * 2 & 3) << 4;
        out[i] = scale * (float)(six - 32) * (float)((bits | third << 2) - 4);
    }
}

void scale_and_minimum(const uint8_t* packed, int b, int* scale, int* minimum) {
    if (b < 4) {
        *scale = packed[b] & 63;
        *minimum = packed[4 + b] & 63;
    } else {
        *scale = (packed[4 + b] & 15) | packed[b - 4] >> 6 << 4;
        *minimum = packed[4 + b] >> 4 | packed[b] >> 6 << 4;
    }
}

/* Q4_K, and Q5_K, whose fifth bits are given. */
static void dequantize_q4_k(const uint8_t* block, const uint8_t* fifth, const uint8_t* quants, float* out) {
    const float scale = f16_at(block, 0), minimum = f16_at(block, 2);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        const int b = i / 32, nibble = quants[b / 2 * 32 + i % 32] >> b % 2 * 4 & 15;
        int six, six_minimum;
        scale_and_minimum(block + 4, b, &six, &six_minimum);
        const int bits = fifth ? nibble | (fifth[i % 32] >> b & 1) << 4 : nibble;
        out[i] = scale * (float)six * (float)bits - minimum * (float)six_minimum;
    }
}

static void dequantize_q6_k(const uint8_t* block, float* out) {
    const float scale = f16_at(block, 208);
    const uint8_t *const upper = block + 128, *const scales = block + 192;
    for (int i = 0; i < SUPER_BLOCK; i++) {
        const int nibble = block[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15, two = upper[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
        out[i] = scale * (float)(int8_t)scales[i / 16] * (float)((nibble | two << 4) - 32);
    }
}

static void dequantize_iq4_xs(const uint8_t* block, float* out) {
    const uint32_t upper = load_u16(block + 2), lower = load_u32(block + 4);
    for (int b = 0; b < SUPER_BLOCKS; b++) {
        const int six = (int)((lower >> 4 * b & 15u) | (upper >> 2 * b & 3u) << 4);
        dequantize_places(f16_at(block, 0) * (float)(six - 32), IQ4_VALUES, block + 8 + b * HALF_BLOCK, out + b * QUANT_BLOCK);
    }
}

static void dequantize_tq2_0(const uint8_t* block, float* out) {
    for (int i = 0; i < SUPER_BLOCK; i++) {
        out[i] = f16_at(block, 64) * (float)((block[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3) - 1);
    }
}

static void dequantize_block(int format, const uint8_t* block, float* out) {
    switch (format) {
        case FORMAT_F32: memcpy(out, block, sizeof *out); break;
        case FORMAT_F16: out[0] = f16_at(block, 0); break;
        case FORMAT_BF16: out[0] = f32_from_bf16(load_u16(block)); break;
        case FORMAT_Q4_0: dequantize_nibbles(f16_at(block, 0), 0.0f, 8, block + 2, out); break;
        case FORMAT_Q4_1: dequantize_nibbles(f16_at(block, 0), f16_at(block, 2), 0, block + 4, out); break;
        case FORMAT_Q5_0: dequantize_five_bits(f16_at(block, 0), 0.0f, 16, block + 2, out); break;
        case FORMAT_Q5_1: dequantize_five_bits(f16_at(block, 0), f16_at(block, 2), 0, block + 4, out); break;
        case FORMAT_Q8_0: dequantize_bytes(f16_at(block, 0), block + 2, out); break;
        case FORMAT_Q2_K: dequantize_q2_k(block, out); break;
        case FORMAT_Q3_K: dequantize_q3_k(block, out); break;
        case FORMAT_Q4_K: dequantize_q4_k(block, NULL, block + 16, out); break;
        case FORMAT_Q5_K: dequantize_q4_k(block, block + 16, block + 48, out); break;
        case FORMAT_Q6_K: dequantize_q6_k(block, out); break;
        case FORMAT_IQ4_NL: dequantize_places(f16_at(block, 0), IQ4_VALUES, block + 2, out); break;
        case FORMAT_IQ4_XS: dequantize_iq4_xs(block, out); break;
        case FORMAT_TQ2_0: dequantize_tq2_0(block, out); break;
        default: dequantize_places(half_of_e8m0(block[0]), MXFP4_VALUES, block + 1, out); break;
    }
}

void dequantize_blocks(int format, const uint8_t* blocks, size_t num_blocks, float* out) {
    const size_t block_bytes = (size_t)BLOCK_FORMATS[format].block_bytes, block_size = (size_t)BLOCK_FORMATS[format].block_size;
    for (size_t i = 0; i < num_blocks; i++) {
        dequantize_block(format, blocks + i * block_bytes, out + i * block_size);
    }
}
