/* Encodings of rows of activations (wire.h). Included by kernel_table.inc.h after quantize.inc.h. */
#include "wire.h"

static void encode_f16(const float* x, int width, uint8_t* out) {
    int i = 0;
    for (; i + 16 <= width; i += 16) {
        f32x16_to_f16((uint16_t*)(out + 2 * i), saturate(f32x16_load(x + i), LARGEST_F16));
    }
    if (i < width) {
        uint16_t rest[16];
        f32x16_to_f16(rest, saturate(f32x16_load_partial(x + i, width - i), LARGEST_F16));
        memcpy(out + 2 * i, rest, (size_t)(width - i) * sizeof *rest);
    }
}

static void decode_f16(const uint8_t* in, int width, float* out) {
    int i = 0;
    for (; i + 16 <= width; i += 16) {
        f32x16_store(out + i, f32x16_from_f16((const uint16_t*)(in + 2 * i)));
    }
    if (i < width) {
        f32x16_store_partial(out + i, f32x16_from_f16_partial((const uint16_t*)(in + 2 * i), width - i), width - i);
    }
}

static void encode_q8_0(const float* x, int width, uint8_t* out) {
    quantize_q8_0(x, (size_t)(width / QUANT_BLOCK), out);
    const int rest = width % QUANT_BLOCK;
    if (rest) {
        float block[QUANT_BLOCK] = {0};
        memcpy(block, x + (width - rest), (size_t)rest * sizeof *x);
        quantize_q8_0(block, 1, out + width / QUANT_BLOCK * Q8_0_BYTES);
    }
}

static void decode_q8_0(const uint8_t* in, int width, float* out) {
    for (int i = 0; i < width; i += QUANT_BLOCK, in += Q8_0_BYTES) {
        const f32x16 scale = f32x16_set1(f32_from_f16(load_u16(in)));
        const f32x16 low = f32x16_mul(scale, f32x16_from_s8((const int8_t*)in + 2));
        const f32x16 high = f32x16_mul(scale, f32x16_from_s8((const int8_t*)in + 18));
        if (width - i >= QUANT_BLOCK) {
            f32x16_store(out + i, low);
            f32x16_store(out + i + 16, high);
        } else {
            f32x16_store_partial(out + i, low, min_int(16, width - i));
            if (width - i > 16) {
                f32x16_store_partial(out + i + 16, high, width - i - 16);
            }
        }
    }
}

/* The outliers found so far, largest first; equal magnitudes keep the order of their indices. */
typedef struct {
    int count;
    int index[NUM_OUTLIERS];
    float magnitude[NUM_OUTLIERS];
} outlier_list;

LANES void consider_outlier(outlier_list* list, int index, float magnitude) {
    int at = list->count;
    if (at == NUM_OUTLIERS) {
        if (!(magnitude > list->magnitude[--at])) {
            return;
        }
    } else {
        list->count++;
    }
    for (; at > 0 && magnitude > list->magnitude[at - 1]; at--) {
        list->index[at] = list->index[at - 1];
        list->magnitude[at] = list->magnitude[at - 1];
    }
    list->index[at] = index;
    list->magnitude[at] = magnitude;
}

/* Magnitudes with NaN as 0, so that it is found in a block and spoils it; infinity stays the largest. */
LANES f32x16 magnitudes(f32x16 x) { return f32x16_max(f32x16_abs(x), f32x16_zero()); }

static void find_outliers(const float* x, int width, outlier_list* list) {
    list->count = 0;
    for (int i = 0; i < width; i += 16) {
        const int n = min_int(16, width - i);
        const f32x16 block = magnitudes(f32x16_load_partial(x + i, n));
        if (list->count == NUM_OUTLIERS && !(f32x16_reduce_max(block) > list->magnitude[NUM_OUTLIERS - 1])) {
            continue;
        }
        float values[16];
        f32x16_store(values, block);
        for (int j = 0; j < n; j++) {
            consider_outlier(list, i + j, values[j]);
        }
    }
}

static void sort_indices(int* index, int count) {
    for (int i = 1; i < count; i++) {
        const int moved = index[i];
        int at = i;
        for (; at > 0 && index[at - 1] > moved; at--) {
            index[at] = index[at - 1];
        }
        index[at] = moved;
    }
}

/* The 8 pairs of the row; returns the indices used, ascending, in `index`. */
static int encode_outliers(const float* x, int width, uint8_t* out, int index[NUM_OUTLIERS]) {
    outlier_list list;
    find_outliers(x, width, &list);
    sort_indices(list.index, list.count);
    float values[16] = {0};
    for (int i = 0; i < list.count; i++) {
        index[i] = list.index[i];
        values[i] = x[index[i]];
    }
    uint16_t halves[16];
    f32x16_to_f16(halves, saturate(f32x16_load(values), LARGEST_F16));
    for (int i = 0; i < NUM_OUTLIERS; i++) {
        store_u16(out + 4 * i, i < list.count ? (uint16_t)index[i] : UNUSED_OUTLIER);
        store_u16(out + 4 * i + 2, halves[i]);
    }
    return list.count;
}

/* Encode the block that starts at x[first], with the numbers at the given indices (all within the block) as zero. */
static void encode_block_without(const float* x, int width, int first, const int* index, int count, uint8_t* out) {
    float block[QUANT_BLOCK] = {0};
    memcpy(block, x + first, (size_t)min_int(QUANT_BLOCK, width - first) * sizeof *x);
    for (int i = 0; i < count; i++) {
        block[index[i] - first] = 0.0f;
    }
    quantize_q8_0(block, 1, out + first / QUANT_BLOCK * Q8_0_BYTES);
}

static void encode_q8_0_outliers(const float* x, int width, uint8_t* out) {
    int index[NUM_OUTLIERS];
    const int count = encode_outliers(x, width, out, index);
    encode_q8_0(x, width, out + OUTLIER_BYTES);
    for (int i = 0; i < count;) {
        const int first = index[i] / QUANT_BLOCK * QUANT_BLOCK;
        int end = i + 1;
        while (end < count && index[end] < first + QUANT_BLOCK) {
            end++;
        }
        encode_block_without(x, width, first, index + i, end - i, out + OUTLIER_BYTES);
        i = end;
    }
}

static void decode_q8_0_outliers(const uint8_t* in, int width, float* out) {
    decode_q8_0(in + OUTLIER_BYTES, width, out);
    for (int i = 0; i < NUM_OUTLIERS && load_u16(in + 4 * i) != UNUSED_OUTLIER; i++) {
        out[load_u16(in + 4 * i)] = f32_from_f16(load_u16(in + 4 * i + 2));
    }
}

static void encode_row(int encoding, const float* x, int width, uint8_t* out) {
    switch (encoding) {
        case ENCODING_F32: memcpy(out, x, (size_t)width * sizeof *x); break;
        case ENCODING_F16: encode_f16(x, width, out); break;
        case ENCODING_Q8_0: encode_q8_0(x, width, out); break;
        default: encode_q8_0_outliers(x, width, out); break;
    }
}

static void decode_row(int encoding, const uint8_t* in, int width, float* out) {
    switch (encoding) {
        case ENCODING_F32: memcpy(out, in, (size_t)width * sizeof *out); break;
        case ENCODING_F16: decode_f16(in, width, out); break;
        case ENCODING_Q8_0: decode_q8_0(in, width, out); break;
        default: decode_q8_0_outliers(in, width, out); break;
    }
}

/* ---- rounding in place: the numbers that encode_row and decode_row would give, without the bytes ---- */

static void round_f16(float* x, int width) {
    for (int i = 0; i < width; i += 16) {
        const int n = min_int(16, width - i);
        uint16_t halves[16];
        f32x16_to_f16(halves, saturate(f32x16_load_partial(x + i, n), LARGEST_F16));
        f32x16_store_partial(x + i, f32x16_from_f16(halves), n);
    }
}

LANES void round_q8_0_block(float* x) {
    const f32x16 low = saturate_in_block(f32x16_load(x)), high = saturate_in_block(f32x16_load(x + 16));
    const float scale = block_scale(low, high);
    f32x16 q_low = f32x16_zero(), q_high = f32x16_zero();
    if (scale > 0.0f) {
        const f32x16 inverse = f32x16_set1(1.0f / scale);
        q_low = f32x16_from_i32(quantise_lanes(low, inverse)); /* as integers there is no -0 */
        q_high = f32x16_from_i32(quantise_lanes(high, inverse));
    }
    const f32x16 sent = f32x16_set1(f32_from_f16(f16_from_f32(scale)));
    f32x16_store(x, f32x16_mul(sent, q_low));
    f32x16_store(x + 16, f32x16_mul(sent, q_high));
}

static void round_q8_0(float* x, int width) {
    const int rest = width % QUANT_BLOCK, whole = width - rest;
    for (int i = 0; i < whole; i += QUANT_BLOCK) {
        round_q8_0_block(x + i);
    }
    if (rest) {
        float block[QUANT_BLOCK] = {0};
        memcpy(block, x + whole, (size_t)rest * sizeof *x);
        round_q8_0_block(block);
        memcpy(x + whole, block, (size_t)rest * sizeof *x);
    }
}

static void round_q8_0_outliers(float* x, int width) {
    outlier_list list;
    find_outliers(x, width, &list);
    float values[16] = {0};
    for (int i = 0; i < list.count; i++) {
        values[i] = x[list.index[i]];
        x[list.index[i]] = 0.0f;
    }
    round_f16(values, list.count);
    round_q8_0(x, width);
    for (int i = 0; i < list.count; i++) {
        x[list.index[i]] = values[i];
    }
}

static void round_row(int encoding, float* x, int width) {
    switch (encoding) {
        case ENCODING_F32: break;
        case ENCODING_F16: round_f16(x, width); break;
        case ENCODING_Q8_0: round_q8_0(x, width); break;
        default: round_q8_0_outliers(x, width); break;
    }
}
