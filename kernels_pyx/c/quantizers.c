#include "quantizers.h"

#include <math.h>

static uint8_t nibble(float x, float inverse_scale) {
    const float shifted = x * inverse_scale + 8.5f;
    return (uint8_t)(shifted < 0.0f ? 0.0f : shifted > 15.0f ? 15.0f : shifted);
}

void quantize_q4_0(const float* x, size_t num_blocks, uint8_t* out) {
    for (size_t block = 0; block < num_blocks; block++, x += QUANT_BLOCK, out += 18) {
        float extreme = 0.0f;
        for (int i = 0; i < QUANT_BLOCK; i++) {
            extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
        }
        const float scale = extreme / -8.0f;
        const float inverse = fabsf(scale) >= 0x1p-126f ? 1.0f / scale : 0.0f;
        store_u16(out, f16_from_f32(scale));
        for (int i = 0; i < QUANT_BLOCK / 2; i++) {
            out[2 + i] = (uint8_t)(nibble(x[i], inverse) | nibble(x[i + QUANT_BLOCK / 2], inverse) << 4);
        }
    }
}

/* Q4_K: x = d * scale * q - dmin * minimum, with q of 4 bits, eight scales and minima of 6 bits.

   First each sub-block of 32 gets the real line x = a * q - b (b >= 0) of least weighted error among several ranges for q. The largest a
   and b become 63 times d and dmin. Then, in turns, scales and minima are the best neighbours of a / d and b / dmin, and d and dmin those
   of least error for the q that result. The best of all turns stays. */
enum { SUB_BLOCKS = SUPER_BLOCK / QUANT_BLOCK, PARTS = 8, MOST_SIX_BITS = 63, TURNS = 3, RANGES = 16 };

static const float SMALLEST_F16 = 0x1p-24f;

typedef struct {
    float v[PARTS];
} partial_sums; /* several at once, so that a compiler may use vectors; added in one order everywhere */

static float total(const partial_sums* sums) {
    float parts[PARTS];
    memcpy(parts, sums->v, sizeof parts);
    for (int half = PARTS / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            parts[i] += parts[i + half];
        }
    }
    return parts[0];
}

/* Weighted sums over a sub-block of which every error follows. */
typedef struct {
    float w, x, q, qq, xq, xx;
} moments;

/* The integer next to x that has four bits. Adding 1.5 * 2^23 leaves no bits behind the point. */
static float nearest_nibble(float x) {
    const float bounded = x > 0.0f ? x < 15.0f ? x : 15.0f : 0.0f;
    return (bounded + 0x1.8p23f) - 0x1.8p23f;
}

static moments moments_of(const float* x, const float* weights, float inverse, float minimum) {
    partial_sums w = {{0}}, wx = {{0}}, wq = {{0}}, wqq = {{0}}, wxq = {{0}}, wxx = {{0}};
    for (int i = 0; i < QUANT_BLOCK; i += PARTS) {
        for (int j = 0; j < PARTS; j++) {
            const float number = x[i + j], weight = weights[i + j], q = nearest_nibble((number + minimum) * inverse);
            w.v[j] += weight;
            wx.v[j] += weight * number;
            wq.v[j] += weight * q;
            wqq.v[j] += weight * q * q;
            wxq.v[j] += weight * number * q;
            wxx.v[j] += weight * number * number;
        }
    }
    return (moments){total(&w), total(&wx), total(&wq), total(&wqq), total(&wxq), total(&wxx)};
}

/* Sum of w * (x - a * q + b)^2 */
static float error_of(const moments* m, float a, float b) {
    return m->xx - 2.0f * a * m->xq + 2.0f * b * m->x + a * a * m->qq - 2.0f * a * b * m->q + b * b * m->w;
}

typedef struct {
    float a, b;
} line;

static line best_line(const moments* m) {
    const float product = m->w * m->qq, determinant = product - m->q * m->q;
    if (determinant > product * 0x1p-16f) { /* less is what rounding leaves of equal q */
        const line best = {(m->w * m->xq - m->x * m->q) / determinant, (m->q * m->xq - m->qq * m->x) / determinant};
        if (best.b >= 0.0f) {
            return best;
        }
    }
    return (line){m->qq > 0.0f ? m->xq / m->qq : 0.0f, 0.0f};
}

static line fit_line(const float* x, const float* weights) {
    float lowest = 0.0f, highest = x[0];
    for (int i = 0; i < QUANT_BLOCK; i++) {
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
    }
    if (!(highest - lowest > SMALLEST_F16)) {
        return (line){0.0f, -lowest};
    }
    line best = {0.0f, 0.0f};
    float least = INFINITY;
    for (int range = 0; range < RANGES; range++) { /* 14 to 17 steps from the lowest to the highest number */
        const float inverse = (14.0f + 0.2f * (float)range) / (highest - lowest);
        const moments m = moments_of(x, weights, inverse, -lowest);
        const line found = best_line(&m);
        const float error = error_of(&m, found.a, found.b);
        if (found.a >= 0.0f && error < least) {
            least = error;
            best = found;
        }
    }
    return best;
}

typedef struct {
    float d, dmin; /* numbers that f16 can hold */
    int scales[SUB_BLOCKS], minima[SUB_BLOCKS];
} super_scales;

static int six_bits_of(float x) { return x > 0.0f ? x < (float)MOST_SIX_BITS ? (int)(x + 0.5f) : MOST_SIX_BITS : 0; }

static float inverse_of(float x) { return x >= SMALLEST_F16 * SMALLEST_F16 ? 1.0f / x : 0.0f; }

/* The scale and the minimum of least error among the neighbours of the line's; returns the error, and the sums that belong to it. */
static float choose_six_bits(const float* x, const float* weights, line fitted, super_scales* s, int b, moments* chosen) {
    const int scale = six_bits_of(fitted.a * inverse_of(s->d)), minimum = six_bits_of(fitted.b * inverse_of(s->dmin));
    float least = INFINITY;
    for (int i = scale > 0 ? scale - 1 : 0; i <= scale + 1 && i <= MOST_SIX_BITS; i++) {
        for (int j = minimum > 0 ? minimum - 1 : 0; j <= minimum + 1 && j <= MOST_SIX_BITS; j++) {
            const float a = s->d * (float)i, offset = s->dmin * (float)j;
            const moments m = moments_of(x, weights, inverse_of(a), offset);
            const float error = error_of(&m, a, offset);
            if (error < least) {
                least = error;
                *chosen = m;
                s->scales[b] = i;
                s->minima[b] = j;
            }
        }
    }
    return least;
}

/* d and dmin of least error for the scales, minima and q that there are; unchanged where no such pair makes sense. */
static void refit(super_scales* s, const moments m[SUB_BLOCKS]) {
    float uu = 0.0f, uv = 0.0f, vv = 0.0f, xu = 0.0f, xv = 0.0f; /* u: scale * q; v: minimum */
    for (int b = 0; b < SUB_BLOCKS; b++) {
        const float scale = (float)s->scales[b], minimum = (float)s->minima[b];
        uu += scale * scale * m[b].qq;
        uv += scale * minimum * m[b].q;
        vv += minimum * minimum * m[b].w;
        xu += scale * m[b].xq;
        xv += minimum * m[b].x;
    }
    const float determinant = uu * vv - uv * uv;
    if (determinant > uu * vv * 0x1p-16f) {
        const float d = (vv * xu - uv * xv) / determinant, dmin = (uv * xu - uu * xv) / determinant;
        if (d > 0.0f && dmin >= 0.0f) {
            s->d = d;
            s->dmin = dmin;
        }
    } else if (uu > 0.0f && xu > 0.0f) {
        s->d = xu / uu;
    }
}

static void round_to_f16(super_scales* s) {
    s->d = f32_from_f16(f16_from_f32(s->d));
    s->dmin = f32_from_f16(f16_from_f32(s->dmin));
}

static super_scales find_scales(const float* x, const float* weights) {
    line lines[SUB_BLOCKS];
    float largest_a = 0.0f, largest_b = 0.0f, least = INFINITY;
    for (int b = 0; b < SUB_BLOCKS; b++) {
        lines[b] = fit_line(x + b * QUANT_BLOCK, weights + b * QUANT_BLOCK);
        largest_a = lines[b].a > largest_a ? lines[b].a : largest_a;
        largest_b = lines[b].b > largest_b ? lines[b].b : largest_b;
    }
    super_scales now = {.d = largest_a / MOST_SIX_BITS, .dmin = largest_b / MOST_SIX_BITS}, best = now;
    for (int turn = 0; turn < TURNS; turn++) {
        moments m[SUB_BLOCKS];
        float error = 0.0f;
        round_to_f16(&now);
        for (int b = 0; b < SUB_BLOCKS; b++) {
            error += choose_six_bits(x + b * QUANT_BLOCK, weights + b * QUANT_BLOCK, lines[b], &now, b, &m[b]);
        }
        if (error < least) {
            least = error;
            best = now;
        }
        refit(&now, m);
    }
    return best;
}

/* The 12 bytes that scale_and_minimum in dequantize.h reads. */
static void store_six_bits(const super_scales* s, uint8_t* out) {
    for (int b = 0; b < SUB_BLOCKS / 2; b++) {
        const int upper = b + SUB_BLOCKS / 2;
        out[b] = (uint8_t)(s->scales[b] | s->scales[upper] >> 4 << 6);
        out[4 + b] = (uint8_t)(s->minima[b] | s->minima[upper] >> 4 << 6);
        out[8 + b] = (uint8_t)((s->scales[upper] & 15) | (s->minima[upper] & 15) << 4);
    }
}

static void quantize_q4_k_block(const float* x, uint8_t* out) {
    float weights[SUPER_BLOCK];
    double squares = 0.0;
    for (int i = 0; i < SUPER_BLOCK; i++) {
        squares += (double)x[i] * (double)x[i];
    }
    const float mean = (float)sqrt(squares / SUPER_BLOCK);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        weights[i] = mean > 0.0f ? 1.0f + fabsf(x[i]) / mean : 1.0f;
    }
    const super_scales s = find_scales(x, weights);
    store_u16(out, f16_from_f32(s.d));
    store_u16(out + 2, f16_from_f32(s.dmin));
    store_six_bits(&s, out + 4);
    for (int i = 0; i < SUPER_BLOCK / 2; i++) {
        const int low = i / 32 * 64 + i % 32, b = low / 32; /* the inputs of byte i are `low` and the one 32 after it */
        const float first = (x[low] + s.dmin * (float)s.minima[b]) * inverse_of(s.d * (float)s.scales[b]);
        const float second = (x[low + 32] + s.dmin * (float)s.minima[b + 1]) * inverse_of(s.d * (float)s.scales[b + 1]);
        out[16 + i] = (uint8_t)((int)nearest_nibble(first) | (int)nearest_nibble(second) << 4);
    }
}

void quantize_q4_k(const float* x, size_t num_blocks, uint8_t* out) {
    for (size_t block = 0; block < num_blocks; block++) {
        quantize_q4_k_block(x + block * SUPER_BLOCK, out + block * (size_t)BLOCK_FORMATS[FORMAT_Q4_K].block_bytes);
    }
}
