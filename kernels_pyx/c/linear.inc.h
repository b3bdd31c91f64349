/* Linear attention over the lanes of the file that includes this. linear.h says what a state is.

   The arithmetic of one sequence, position after position, whatever is computed beside it:
     mixed[c] = silu(sum over j, in order, of fma(conv[j][c], input of the position conv_width - 1 - j before [c], sum))
     queries and keys of a head: x * (1 / sqrt(sum of squares + 1e-6)), queries times 1 / sqrt(key_dim)
     decay = exp(rate * log(1 + exp(alpha + bias))), in double precision; beta = 1 / (1 + exp(-beta))
     kept[k][v] = state[k][v] * decay
     change[v] = (value[v] - sum over k, in order, of fma(kept[k][v], key[k], sum)) * beta
     state[k][v] = fma(key[k], change[v], kept[k][v])
     out[v] = sum over k, in order, of fma(state[k][v], query[k], sum)
   Columns v lie across lanes, so neither chunks nor the split of heads and columns over threads matter. */
#include "linear.h"

enum { CONV_VECTORS = 4 };

/* The input of the convolution at a row of the task, or at one before its first. NULL: zeros. */
LANES const float* conv_input(const linear_task* task, int row) {
    const size_t channels = (size_t)linear_channels(task->shape);
    if (row >= 0) {
        return task->mixed + (size_t)row * channels;
    }
    return task->state_before ? task->state_before + (size_t)(task->shape->conv_width - 1 + row) * channels : NULL;
}

LANES void convolve_lanes(const linear_task* task, int channel, int n) {
    const size_t channels = (size_t)linear_channels(task->shape);
    const int width = task->shape->conv_width;
    for (int i = 0; i < width - 1; i++) {
        const float* from = conv_input(task, task->num_rows - (width - 1) + i);
        const f32x16 input = from ? f32x16_load_partial(from + channel, n) : f32x16_zero();
        f32x16_store_partial(task->state_after + (size_t)i * channels + (size_t)channel, input, n);
    }
    for (int row = task->num_rows - 1; row >= 0; row--) { /* backwards, since later rows need the inputs of earlier ones */
        f32x16 sum = f32x16_zero();
        for (int j = 0; j < width; j++) {
            const float* from = conv_input(task, row - (width - 1) + j);
            const f32x16 input = from ? f32x16_load_partial(from + channel, n) : f32x16_zero();
            sum = f32x16_fma(f32x16_load_partial(task->conv + (size_t)j * channels + (size_t)channel, n), input, sum);
        }
        f32x16_store_partial(task->mixed + (size_t)row * channels + (size_t)channel, times_sigmoid(sum, sum), n);
    }
}

/* Channels [begin, end) of all rows, in place. */
static void linear_convolve(const linear_task* task, int begin, int end) {
    for (int channel = begin; channel < end; channel += 16) {
        if (end - channel >= 16) {
            convolve_lanes(task, channel, 16);
        } else {
            convolve_lanes(task, channel, end - channel);
        }
    }
}

LANES void scale_to_length_one(float* x, int width, float factor) {
    f32x16 squares = f32x16_zero();
    for (int i = 0; i < width; i += 16) {
        const f32x16 v = f32x16_load_partial(x + i, width - i < 16 ? width - i : 16);
        squares = f32x16_fma(v, v, squares);
    }
    const f32x16 scale = f32x16_set1(1.0f / sqrtf(f32x16_reduce_add(squares) + 1e-6f) * factor);
    for (int i = 0; i < width; i += 16) {
        const int n = width - i < 16 ? width - i : 16;
        f32x16_store_partial(x + i, f32x16_mul(f32x16_load_partial(x + i, n), scale), n);
    }
}

LANES float decay_of(float rate, float alpha, float bias) {
    const double x = (double)alpha + (double)bias;
    return (float)dm_exp((double)rate * (x > 30.0 ? x : dm_log(1.0 + dm_exp(x))));
}

/* One row in place: the lengths of queries and keys; alpha becomes the decay of each head, beta its beta. */
static void linear_prepare_row(const linear_shape* shape, const float* rate, const float* bias, float* mixed, float* alpha, float* beta) {
    const float query_scale = 1.0f / sqrtf((float)shape->key_dim);
    for (int head = 0; head < 2 * shape->num_key_heads; head++) {
        const float factor = head < shape->num_key_heads ? query_scale : 1.0f;
        scale_to_length_one(mixed + (size_t)head * (size_t)shape->key_dim, shape->key_dim, factor);
    }
    const f32x16 one = f32x16_set1(1.0f);
    for (int head = 0; head < shape->num_value_heads; head += 16) {
        const int n = shape->num_value_heads - head < 16 ? shape->num_value_heads - head : 16;
        const f32x16 x = f32x16_load_partial(beta + head, n);
        f32x16_store_partial(beta + head, f32x16_div(one, f32x16_add(one, f32x16_exp(f32x16_neg(x)))), n);
    }
    for (int head = 0; head < shape->num_value_heads; head++) {
        alpha[head] = decay_of(rate[head], alpha[head], bias[head]);
    }
}

/* One row of `num_vectors` times 16 columns; state [key_dim][16 * num_vectors], where `before` may be `after`. */
LANES void delta_step(
    int num_vectors, int key_dim, const float* before, float* after, const float* key, const float* query, const float* value, int columns,
    float decay, float beta, float* out
) {
    const f32x16 decays = f32x16_set1(decay), betas = f32x16_set1(beta);
    const size_t stride = (size_t)num_vectors * 16;
    f32x16 sums[LINEAR_PART_VECTORS], change[LINEAR_PART_VECTORS];
    UNROLL_ROWS
    for (int v = 0; v < num_vectors; v++) {
        sums[v] = f32x16_zero();
    }
    for (int k = 0; k < key_dim; k++) {
        const f32x16 keys = f32x16_set1(key[k]);
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[v] = f32x16_fma(f32x16_mul(f32x16_load(before + (size_t)k * stride + v * 16), decays), keys, sums[v]);
        }
    }
    UNROLL_ROWS
    for (int v = 0; v < num_vectors; v++) {
        const int n = columns - v * 16 < 16 ? columns - v * 16 : 16;
        change[v] = f32x16_mul(f32x16_sub(f32x16_load_partial(value + v * 16, n), sums[v]), betas);
        sums[v] = f32x16_zero();
    }
    for (int k = 0; k < key_dim; k++) {
        const f32x16 keys = f32x16_set1(key[k]), queries = f32x16_set1(query[k]);
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            const size_t at = (size_t)k * stride + (size_t)v * 16;
            const f32x16 state = f32x16_fma(keys, change[v], f32x16_mul(f32x16_load(before + at), decays));
            f32x16_store(after + at, state);
            sums[v] = f32x16_fma(state, queries, sums[v]);
        }
    }
    UNROLL_ROWS
    for (int v = 0; v < num_vectors; v++) {
        const int n = columns - v * 16 < 16 ? columns - v * 16 : 16;
        f32x16_store_partial(out + v * 16, sums[v], n);
    }
}

LANES void delta_rows(int num_vectors, const linear_task* task, int head, int part) {
    const linear_shape* shape = task->shape;
    const int channels = linear_channels(shape), key_width = linear_key_width(shape), value_width = linear_value_width(shape);
    const int heads_per_key = shape->num_value_heads / shape->num_key_heads;
    const int key_head = shape->tiled ? head % shape->num_key_heads : head / heads_per_key;
    const int first = part * LINEAR_PART_COLUMNS, rest = shape->value_dim - first;
    const int columns = rest < num_vectors * 16 ? rest : num_vectors * 16;
    const size_t at = linear_conv_numbers(shape) + (size_t)head * linear_head_numbers(shape) + (size_t)first * (size_t)shape->key_dim;
    const float *query = task->mixed + (size_t)key_head * (size_t)shape->key_dim, *key = query + key_width;
    const float* value = task->mixed + 2 * (size_t)key_width + (size_t)head * (size_t)shape->value_dim + (size_t)first;
    float *out = task->out + (size_t)head * (size_t)shape->value_dim + (size_t)first, *after = task->state_after + at;
    const float* before = task->state_before ? task->state_before + at : after;
    if (!task->state_before) {
        memset(after, 0, (size_t)shape->key_dim * (size_t)num_vectors * 16 * sizeof *after);
    }
    for (int row = 0; row < task->num_rows; row++) {
        const size_t number = (size_t)row * (size_t)shape->num_value_heads + (size_t)head, offset = (size_t)row * (size_t)channels;
        delta_step(
            num_vectors, shape->key_dim, before, after, key + offset, query + offset, value + offset, columns, task->decay[number],
            task->beta[number], out + (size_t)row * (size_t)value_width
        );
        before = after;
    }
}

/* Part `part` of the columns of a value head, over all rows of the task, after linear_convolve and linear_prepare_row. */
static void linear_recur(const linear_task* task, int head, int part) {
    const int left = task->shape->value_dim - part * LINEAR_PART_COLUMNS, num_vectors = (left + 15) / 16;
    switch (num_vectors) {
        case 1: delta_rows(1, task, head, part); break;
        case 2: delta_rows(2, task, head, part); break;
        case 3: delta_rows(3, task, head, part); break;
        default: delta_rows(LINEAR_PART_VECTORS, task, head, part);
    }
}

/* gate = silu(gate) * norm(out) for each head of a row; `out` is overwritten. */
static void linear_finish_row(const linear_shape* shape, const norm_spec* norm, float* out, float* gate) {
    const activation_spec activation = {.kind = ACTIVATION_SILU};
    for (int head = 0; head < shape->num_value_heads; head++) {
        norm_row(norm, out + (size_t)head * (size_t)shape->value_dim, shape->value_dim, out + (size_t)head * (size_t)shape->value_dim);
    }
    activate_row(&activation, gate, out, linear_value_width(shape));
}
