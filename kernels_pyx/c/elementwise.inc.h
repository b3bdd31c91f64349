/* Norms, activations, rotary positions and the exponential, over the lanes of the file that includes this.

   Sums over a row use 16 partial sums (element i in partial i % 16) and the fixed tree of f32x16_reduce_add; a row that does not fill its
   last 16 lanes is continued with numbers that change nothing. */
#include "deterministic_math.h"

#include <math.h>

/* exp(x) = 2^n * exp(r), |r| <= ln(2)/2, with a polynomial of degree 7: at most 2 ulp where the result is a normal number. Below
   -87.33 the result is 0, above 88.7228 infinity; NaN stays NaN. */
LANES f32x16 f32x16_exp(f32x16 x) {
    const f32x16 low = f32x16_set1(-87.33f), high = f32x16_set1(88.72283f);
    const f32x16 one = f32x16_set1(1.0f), two = f32x16_set1(2.0f), largest = f32x16_set1(127.0f);
    const f32x16 bounded = f32x16_max(low, f32x16_min(high, x)); /* this order keeps NaN */
    const f32x16 n = f32x16_round_even(f32x16_mul(bounded, f32x16_set1(0x1.715476p+0f)));
    f32x16 r = f32x16_fma(n, f32x16_set1(-0x1.62e000p-1f), bounded);
    r = f32x16_fma(n, f32x16_set1(-0x1.0bfbe8p-15f), r);
    f32x16 p = f32x16_set1(0x1.a1256cp-13f);
    p = f32x16_fma(p, r, f32x16_set1(0x1.6d43b0p-10f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.1110e0p-7f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.5554e8p-5f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.555556p-3f));
    p = f32x16_fma(p, r, f32x16_set1(0.5f));
    p = f32x16_fma(p, f32x16_mul(r, r), f32x16_add(r, one));
    /* 2^128 is no float: the last binade takes two steps. */
    const f32x16 exponent = f32x16_select_gt(n, largest, largest, f32x16_select_gt(x, low, n, f32x16_zero()));
    p = f32x16_mul(f32x16_scale2(p, f32x16_to_i32(exponent)), f32x16_select_gt(n, largest, two, one));
    p = f32x16_select_gt(x, high, f32x16_set1(INFINITY), p);
    return f32x16_select_gt(low, x, f32x16_zero(), p);
}

static void exp_row(const float* x, int width, float* out) {
    int i = 0;
    for (; i + 16 <= width; i += 16) {
        f32x16_store(out + i, f32x16_exp(f32x16_load(x + i)));
    }
    if (i < width) {
        f32x16_store_partial(out + i, f32x16_exp(f32x16_load_partial(x + i, width - i)), width - i);
    }
}

/* out = x / sqrt(mean(x^2) + epsilon) * weight */
static void rms_norm_row(const float* x, const float* weight, int width, float epsilon, float* out) {
    const int whole = width / 16 * 16, rest = width - whole;
    f32x16 squares = f32x16_zero();
    for (int i = 0; i < whole; i += 16) {
        const f32x16 v = f32x16_load(x + i);
        squares = f32x16_fma(v, v, squares);
    }
    if (rest) {
        const f32x16 v = f32x16_load_partial(x + whole, rest);
        squares = f32x16_fma(v, v, squares);
    }
    const f32x16 scale = f32x16_set1(1.0f / sqrtf(f32x16_reduce_add(squares) / (float)width + epsilon));
    for (int i = 0; i < whole; i += 16) {
        f32x16_store(out + i, f32x16_mul(f32x16_mul(f32x16_load(x + i), scale), f32x16_load(weight + i)));
    }
    if (rest) {
        const f32x16 y = f32x16_mul(f32x16_mul(f32x16_load_partial(x + whole, rest), scale), f32x16_load_partial(weight + whole, rest));
        f32x16_store_partial(out + whole, y, rest);
    }
}

static void add_row(float* x, const float* y, int width) {
    for (int i = 0; i < width; i++) {
        x[i] += y[i];
    }
}

/* gate = gate / (1 + exp(-gate)) * up */
static void swiglu_row(float* gate, const float* up, int width) {
    const f32x16 one = f32x16_set1(1.0f);
    for (int i = 0; i < width; i += 16) {
        const int n = width - i < 16 ? width - i : 16;
        const f32x16 g = n == 16 ? f32x16_load(gate + i) : f32x16_load_partial(gate + i, n);
        const f32x16 u = n == 16 ? f32x16_load(up + i) : f32x16_load_partial(up + i, n);
        const f32x16 y = f32x16_mul(f32x16_div(g, f32x16_add(one, f32x16_exp(f32x16_neg(g)))), u);
        if (n == 16) {
            f32x16_store(gate + i, y);
        } else {
            f32x16_store_partial(gate + i, y, n);
        }
    }
}

/* Rotate the first rope_dim numbers of each head by the angles of a position: pairs (2i, 2i+1) if interleaved, else (i, i + rope_dim/2). */
static void rope_row(float* x, int num_heads, int head_dim, int rope_dim, int interleaved, const float* cosines, const float* sines) {
    const int half = rope_dim / 2, stride = interleaved ? 2 : 1, other = interleaved ? 1 : half;
    for (int head = 0; head < num_heads; head++, x += head_dim) {
        for (int i = 0; i < half; i++) {
            const float a = x[i * stride], b = x[i * stride + other];
            x[i * stride] = fmaf(a, cosines[i], -(b * sines[i]));
            x[i * stride + other] = fmaf(b, cosines[i], a * sines[i]);
        }
    }
}

static float logsumexp_row(const float* x, int width) {
    const int whole = width / 16 * 16, rest = width - whole;
    f32x16 largest = f32x16_set1(-INFINITY);
    float tail[16];
    for (int i = 0; i < 16; i++) {
        tail[i] = i < rest ? x[whole + i] : -INFINITY;
    }
    for (int i = 0; i < whole; i += 16) {
        largest = f32x16_max(largest, f32x16_load(x + i));
    }
    const float maximum = f32x16_reduce_max(f32x16_max(largest, f32x16_load(tail)));
    if (!isfinite(maximum)) {
        return maximum;
    }
    const f32x16 shift = f32x16_set1(maximum);
    f32x16 sum = f32x16_zero();
    for (int i = 0; i < whole; i += 16) {
        sum = f32x16_add(sum, f32x16_exp(f32x16_sub(f32x16_load(x + i), shift)));
    }
    sum = f32x16_add(sum, f32x16_exp(f32x16_sub(f32x16_load(tail), shift)));
    return (float)((double)maximum + dm_log((double)f32x16_reduce_add(sum)));
}

static void log_softmax_row(const float* x, int width, float* out) {
    const float total = logsumexp_row(x, width);
    for (int i = 0; i < width; i++) {
        out[i] = x[i] - total;
    }
}
