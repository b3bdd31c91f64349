/* Norms, activations, rotary positions and the exponential, over the lanes of the file that includes this.

   Sums over a row use 16 partial sums (element i in partial i % 16) and the fixed tree of f32x16_reduce_add; a row that does not fill its
   last 16 lanes is continued with numbers that change nothing. */
#include "deterministic_math.h"
#include "elementwise.h"

#include <math.h>
#include <string.h>

/* exp(r) for |r| <= ln(2)/2, as a polynomial of degree 7. */
LANES f32x16 exp_of_rest(f32x16 r) {
    f32x16 p = f32x16_set1(0x1.a1256cp-13f);
    p = f32x16_fma(p, r, f32x16_set1(0x1.6d43b0p-10f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.1110e0p-7f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.5554e8p-5f));
    p = f32x16_fma(p, r, f32x16_set1(0x1.555556p-3f));
    p = f32x16_fma(p, r, f32x16_set1(0.5f));
    return f32x16_fma(p, f32x16_mul(r, r), f32x16_add(r, f32x16_set1(1.0f)));
}

/* x - n * ln(2) */
LANES f32x16 without_powers(f32x16 x, f32x16 n) {
    return f32x16_fma(n, f32x16_set1(-0x1.0bfbe8p-15f), f32x16_fma(n, f32x16_set1(-0x1.62e000p-1f), x));
}

#define EXP_LEAST (-87.33f)

/* exp(x) = 2^n * exp(r), |r| <= ln(2)/2: at most 2 ulp where the result is a normal number. Below -87.33 the result is 0, above 88.7228
   infinity; NaN stays NaN. */
LANES f32x16 f32x16_exp(f32x16 x) {
    const f32x16 low = f32x16_set1(EXP_LEAST), high = f32x16_set1(88.72283f);
    const f32x16 one = f32x16_set1(1.0f), two = f32x16_set1(2.0f), largest = f32x16_set1(127.0f);
    const f32x16 bounded = f32x16_max(low, f32x16_min(high, x)); /* this order keeps NaN */
    const f32x16 n = f32x16_round_even(f32x16_mul(bounded, f32x16_set1(0x1.715476p+0f)));
    /* 2^128 is no float: the last binade takes two steps. */
    const f32x16 exponent = f32x16_select_gt(n, largest, largest, f32x16_select_gt(x, f32x16_set1(-88.0f), n, f32x16_zero()));
    const f32x16 scaled = f32x16_scale2(exp_of_rest(without_powers(bounded, n)), f32x16_to_i32(exponent));
    const f32x16 p = f32x16_mul(scaled, f32x16_select_gt(n, largest, two, one));
    return f32x16_select_gt(low, x, f32x16_zero(), f32x16_select_gt(x, high, f32x16_set1(INFINITY), p));
}

/* The same of numbers that are at most 0, or NaN, in two thirds of the time. */
LANES f32x16 f32x16_exp_below_0(f32x16 x) {
    const f32x16 low = f32x16_set1(EXP_LEAST), bounded = f32x16_max(x, low); /* this order has -87.33 for NaN */
    const f32x16 n = f32x16_round_even(f32x16_mul(bounded, f32x16_set1(0x1.715476p+0f)));
    const f32x16 p = f32x16_scale2(exp_of_rest(without_powers(x, n)), f32x16_to_i32(n));
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

/* FLOAT_ROWS * 16 multiplications with addition a round, that neither memory nor each other hold up: the peak that kernels are compared with. */
static float fma_rounds(int rounds) {
    static const float starts[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; /* equal lanes would be computed once */
    f32x16 sums[FLOAT_ROWS], sum = f32x16_zero();
    const f32x16 factor = f32x16_set1(0.5f), summand = f32x16_set1(1.0f);
    UNROLL_ROWS
    for (int i = 0; i < FLOAT_ROWS; i++) {
        sums[i] = f32x16_add(f32x16_load(starts), f32x16_set1((float)(16 * i)));
    }
    for (int round = 0; round < rounds; round++) {
        UNROLL_ROWS
        for (int i = 0; i < FLOAT_ROWS; i++) {
            sums[i] = f32x16_fma(sums[i], factor, summand);
        }
    }
    UNROLL_ROWS
    for (int i = 0; i < FLOAT_ROWS; i++) {
        sum = f32x16_add(sum, sums[i]);
    }
    return f32x16_reduce_add(sum);
}

/* The 16 numbers from element i on of a row of `width`, or those that are left, filled up with zeros. */
LANES f32x16 load_row(const float* x, int i, int width) {
    return i + 16 <= width ? f32x16_load(x + i) : f32x16_load_partial(x + i, width - i);
}

LANES void store_row(float* x, int i, int width, f32x16 y) {
    if (i + 16 <= width) {
        f32x16_store(x + i, y);
    } else {
        f32x16_store_partial(x + i, y, width - i);
    }
}

LANES f32x16 times_weight(const norm_spec* norm, f32x16 x, int i, int width) {
    return norm->weight ? f32x16_mul(x, load_row(norm->weight, i, width)) : x;
}

/* out = x / sqrt(mean(x^2) + epsilon) * weight */
static void rms_norm_row(const norm_spec* norm, const float* x, int width, float* out) {
    f32x16 squares = f32x16_zero();
    for (int i = 0; i < width; i += 16) {
        const f32x16 v = load_row(x, i, width);
        squares = f32x16_fma(v, v, squares);
    }
    const f32x16 scale = f32x16_set1(1.0f / sqrtf(f32x16_reduce_add(squares) / (float)width + norm->epsilon));
    for (int i = 0; i < width; i += 16) {
        store_row(out, i, width, times_weight(norm, f32x16_mul(load_row(x, i, width), scale), i, width));
    }
}

/* Zeros where a row of `width` has ended, `mean` elsewhere. */
LANES f32x16 mean_of_row(float mean, int i, int width) {
    float lanes[16];
    for (int lane = 0; lane < 16; lane++) {
        lanes[lane] = i + lane < width ? mean : 0.0f;
    }
    return f32x16_load(lanes);
}

/* out = (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * weight */
static void layer_norm_row(const norm_spec* norm, const float* x, int width, float* out) {
    f32x16 sum = f32x16_zero(), squares = f32x16_zero();
    for (int i = 0; i < width; i += 16) {
        sum = f32x16_add(sum, load_row(x, i, width));
    }
    const float mean = f32x16_reduce_add(sum) / (float)width;
    for (int i = 0; i < width; i += 16) {
        const f32x16 v = f32x16_sub(load_row(x, i, width), mean_of_row(mean, i, width));
        squares = f32x16_fma(v, v, squares);
    }
    const f32x16 scale = f32x16_set1(1.0f / sqrtf(f32x16_reduce_add(squares) / (float)width + norm->epsilon)), shift = f32x16_set1(mean);
    for (int i = 0; i < width; i += 16) {
        const f32x16 v = f32x16_mul(f32x16_sub(load_row(x, i, width), shift), scale);
        store_row(out, i, width, times_weight(norm, v, i, width));
    }
}

/* `out` may be x. */
static void norm_row(const norm_spec* norm, const float* x, int width, float* out) {
    if (norm->kind == NORM_RMS) {
        rms_norm_row(norm, x, width, out);
    } else if (norm->kind == NORM_LAYER) {
        layer_norm_row(norm, x, width, out);
    } else if (out != x) {
        memcpy(out, x, (size_t)width * sizeof *x);
    }
}

static void add_row(float* x, const float* y, int width) {
    for (int i = 0; i < width; i++) {
        x[i] += y[i];
    }
}

/* With a scale of 1 the same bits as add_row. */
static void add_scaled_row(float* x, const float* y, float scale, int width) {
    const f32x16 factor = f32x16_set1(scale);
    for (int i = 0; i < width; i += 16) {
        store_row(x, i, width, f32x16_fma(factor, load_row(y, i, width), load_row(x, i, width)));
    }
}

/* tanh(x): below 0.3 x + x^3 * a polynomial of degree 3 in x^2, else (1 - t) / (1 + t) with t = exp(-2|x|) and the sign of x. At most 4 ulp. */
LANES f32x16 f32x16_tanh(f32x16 x) {
    const f32x16 one = f32x16_set1(1.0f), magnitude = f32x16_abs(x), square = f32x16_mul(x, x);
    const f32x16 t = f32x16_exp(f32x16_mul(magnitude, f32x16_set1(-2.0f)));
    const f32x16 far = f32x16_div(f32x16_sub(one, t), f32x16_add(one, t));
    f32x16 p = f32x16_set1(0x1.664f4ap-6f);
    p = f32x16_fma(p, square, f32x16_set1(-0x1.ba1ba2p-5f));
    p = f32x16_fma(p, square, f32x16_set1(0x1.111112p-3f));
    p = f32x16_fma(p, square, f32x16_set1(-0x1.555556p-2f));
    const f32x16 near = f32x16_fma(f32x16_mul(p, square), x, x);
    return f32x16_select_gt(magnitude, f32x16_set1(0.3f), f32x16_select_gt(f32x16_zero(), x, f32x16_neg(far), far), near);
}

/* softcap * tanh(x / softcap); x itself if softcap is 0 */
LANES f32x16 f32x16_softcap(f32x16 x, float softcap) {
    const f32x16 bound = f32x16_set1(softcap);
    return softcap == 0.0f ? x : f32x16_mul(f32x16_tanh(f32x16_div(x, bound)), bound);
}

/* x = softcap(x * scale) */
static void scale_row(float* x, float scale, float softcap, int width) {
    const f32x16 factor = f32x16_set1(scale);
    for (int i = 0; i < width; i += 16) {
        store_row(x, i, width, f32x16_softcap(f32x16_mul(load_row(x, i, width), factor), softcap));
    }
}

/* x / (1 + exp(-y)) */
LANES f32x16 times_sigmoid(f32x16 x, f32x16 y) { return f32x16_div(x, f32x16_add(f32x16_set1(1.0f), f32x16_exp(f32x16_neg(y)))); }

LANES f32x16 silu(const activation_spec* spec, f32x16 gate, f32x16 up) {
    (void)spec;
    return f32x16_mul(times_sigmoid(gate, gate), up);
}

/* gate / 2 * (1 + tanh(y / 2)) is gate times the sigmoid of y = sqrt(8 / pi) * (gate + 0.044715 gate^3). */
LANES f32x16 gelu_tanh(const activation_spec* spec, f32x16 gate, f32x16 up) {
    (void)spec;
    const f32x16 inner = f32x16_fma(f32x16_mul(gate, gate), f32x16_mul(gate, f32x16_set1(0x1.6e4e26p-5f)), gate);
    return f32x16_mul(times_sigmoid(gate, f32x16_mul(inner, f32x16_set1(0x1.988454p+0f))), up);
}

/* Gate and up are bounded, gate above only; gate times the sigmoid of alpha * gate, times up + 1. */
LANES f32x16 silu_clamped(const activation_spec* spec, f32x16 gate, f32x16 up) {
    const f32x16 most = f32x16_set1(spec->limit), least = f32x16_neg(most);
    const f32x16 g = f32x16_min(most, gate), u = f32x16_max(least, f32x16_min(most, up)); /* this order keeps NaN */
    return f32x16_mul(times_sigmoid(g, f32x16_mul(g, f32x16_set1(spec->alpha))), f32x16_add(u, f32x16_set1(1.0f)));
}

#define ACTIVATE(function)                                                                                     \
    for (int i = 0; i < width; i += 16) {                                                                      \
        store_row(gate, i, width, function(activation, load_row(gate, i, width), load_row(up, i, width)));     \
    }

/* gate = activation(gate) * up */
static void activate_row(const activation_spec* activation, float* gate, const float* up, int width) {
    switch (activation->kind) {
        case ACTIVATION_SILU: ACTIVATE(silu) break;
        case ACTIVATION_GELU_TANH: ACTIVATE(gelu_tanh) break;
        case ACTIVATION_SILU_CLAMPED: ACTIVATE(silu_clamped) break;
    }
}
#undef ACTIVATE

/* x = x / (1 + exp(-gate)) */
static void sigmoid_gate_row(float* x, const float* gate, int width) {
    for (int i = 0; i < width; i += 16) {
        store_row(x, i, width, times_sigmoid(load_row(x, i, width), load_row(gate, i, width)));
    }
}

/* Rotate the first rope_dim numbers of each head by the angles of a position: pairs (2i, 2i+1) if interleaved, else (i, i + rope_dim/2).
   stride: numbers from one head to the next. */
static void rope_row(float* x, int num_heads, int stride, int rope_dim, int interleaved, const float* cosines, const float* sines) {
    const int half = rope_dim / 2, step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
    for (int head = 0; head < num_heads; head++, x += stride) {
        for (int i = 0; i < half; i++) {
            const float a = x[i * step], b = x[i * step + other];
            x[i * step] = fmaf(a, cosines[i], -(b * sines[i]));
            x[i * step + other] = fmaf(b, cosines[i], a * sines[i]);
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
