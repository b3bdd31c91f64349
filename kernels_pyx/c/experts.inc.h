/* What routing to experts needs beside the products. Included by kernel_table.inc.h after elementwise.inc.h.

   Sums over a row have the shape that they have there. A NaN among the numbers of a softmax makes all of them NaN. */

/* As load_row, but filled up with -infinity. */
LANES f32x16 load_or_lowest(const float* x, int n) {
    float numbers[16];
    for (int i = 0; i < 16; i++) {
        numbers[i] = i < n ? x[i] : -INFINITY;
    }
    return f32x16_load(numbers);
}

/* x = exp(x - max) / sum of these */
static void softmax_row(float* x, int width) {
    f32x16 largest = f32x16_set1(-INFINITY), sum = f32x16_zero();
    for (int i = 0; i < width; i += 16) {
        largest = f32x16_max(largest, load_or_lowest(x + i, width - i));
    }
    const f32x16 shift = f32x16_set1(f32x16_reduce_max(largest));
    for (int i = 0; i < width; i += 16) {
        const f32x16 power = f32x16_exp(f32x16_sub(load_or_lowest(x + i, width - i), shift));
        sum = f32x16_add(sum, power);
        store_row(x, i, width, power);
    }
    const f32x16 divisor = f32x16_set1(f32x16_reduce_add(sum));
    for (int i = 0; i < width; i += 16) {
        store_row(x, i, width, f32x16_div(load_or_lowest(x + i, width - i), divisor));
    }
}

/* x = 1 / (1 + exp(-x)) */
static void sigmoid_row(float* x, int width) {
    const f32x16 one = f32x16_set1(1.0f);
    for (int i = 0; i < width; i += 16) {
        const f32x16 power = f32x16_exp(f32x16_neg(load_row(x, i, width)));
        store_row(x, i, width, f32x16_div(one, f32x16_add(one, power)));
    }
}

static float sum_row(const float* x, int width) {
    f32x16 sum = f32x16_zero();
    for (int i = 0; i < width; i += 16) {
        sum = f32x16_add(sum, load_row(x, i, width));
    }
    return f32x16_reduce_add(sum);
}
