/* Compares the kernels of instruction sets with the scalar ones, bit by bit, on random data: for machines that this one is not.
   TABLES: the tables to compare; without it those that the machine is found to have. */
#include <stdio.h>
#include <stdlib.h>

#include "attention.h"
#include "kernel_table.h"
#include "linear.h"
#include "packing.h"
#include "wire.h"

static uint64_t state;
static int failures;
static const kernel_table* other;

static uint32_t draw(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

static void fill_numbers(float* x, size_t count) {
    for (size_t i = 0; i < count; i++) {
        x[i] = ((float)(int32_t)draw() * 0x1p-31f) * (draw() % 29 == 0 ? 300.0f : 1.0f);
    }
}

/* Equal bits, or a NaN in both. */
static void compare_floats(const char* what, const char* which, const float* a, const float* b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (f32_bits(a[i]) != f32_bits(b[i]) && (a[i] == a[i] || b[i] == b[i])) {
            printf("%s %s: number %zu is %a, expected %a\n", what, which, i, (double)b[i], (double)a[i]);
            failures++;
            return;
        }
    }
}

static void compare_bytes(const char* what, const char* which, const uint8_t* a, const uint8_t* b, size_t count) {
    if (memcmp(a, b, count) != 0) {
        printf("%s %s: other bytes\n", what, which);
        failures++;
    }
}

/* Any bits, and in half of the cases with scales that are ordinary numbers. */
static void fill_blocks(int format, uint8_t* blocks, size_t num_blocks, int with_any_scales) {
    const block_format* layout = &BLOCK_FORMATS[format];
    for (size_t i = 0; i < num_blocks * (size_t)layout->block_bytes; i++) {
        blocks[i] = (uint8_t)draw();
    }
    for (size_t i = 0; i < num_blocks && !with_any_scales; i++) {
        uint8_t* const numbers = blocks + i * (size_t)layout->block_bytes + layout->numbers_at;
        for (int n = 0; n < layout->num_numbers; n++) {
            numbers[(n + 1) * layout->number_bytes - 1] = layout->number_bytes == 1 ? 0x78 : (uint8_t)(0x2c | (draw() & 0x83));
        }
    }
}

static float* multiply(const kernel_table* table, const packed_matrix* w, const float* x, int rows) {
    void* act = malloc(activation_bytes(w->format, rows, w->inputs));
    float* y = calloc((size_t)rows * (size_t)w->outputs, sizeof *y);
    table->prepare_activations(w->format, x, (size_t)w->inputs, 0, rows, rows, w->inputs, act);
    table->matmul_tiles(w, act, rows, y, (size_t)w->outputs, 0, num_tiles(w));
    free(act);
    return y;
}

static void compare_matmul(int format, int outputs, int num_blocks, int rows, int with_any_scales) {
    const int inputs = num_blocks * BLOCK_FORMATS[format].block_size;
    const size_t blocks = (size_t)outputs * (size_t)num_blocks;
    uint8_t* data = malloc(blocks * (size_t)BLOCK_FORMATS[format].block_bytes);
    float* x = malloc((size_t)rows * (size_t)inputs * sizeof *x);
    packed_matrix w;
    packed_matrix_describe(&w, format, outputs, inputs);
    if (packed_matrix_allocate(&w) != 0) {
        abort();
    }
    fill_blocks(format, data, blocks, with_any_scales);
    pack_rows(&w, 0, outputs, data);
    fill_numbers(x, (size_t)rows * (size_t)inputs);
    float *expected = multiply(&kernels_scalar, &w, x, rows), *result = multiply(other, &w, x, rows);
    compare_floats("matmul", BLOCK_FORMATS[format].name, expected, result, (size_t)rows * (size_t)outputs);
    free(data);
    free(x);
    free(expected);
    free(result);
    packed_matrix_free(&w);
}

static void compare_wire(int encoding, int width) {
    static const char* const NAMES[] = {"F32", "F16", "Q8_0", "Q8_0_OUTLIERS"};
    const size_t bytes = encoded_row_bytes(encoding, width);
    uint8_t *first = calloc(bytes, 1), *second = calloc(bytes, 1);
    float *x = malloc((size_t)width * sizeof *x), *a = malloc((size_t)width * sizeof *x), *b = malloc((size_t)width * sizeof *x);
    fill_numbers(x, (size_t)width);
    kernels_scalar.encode_row(encoding, x, width, first);
    other->encode_row(encoding, x, width, second);
    compare_bytes("encoding", NAMES[encoding], first, second, bytes);
    kernels_scalar.decode_row(encoding, first, width, a);
    other->decode_row(encoding, first, width, b);
    compare_floats("decoding", NAMES[encoding], a, b, (size_t)width);
    memcpy(b, x, (size_t)width * sizeof *x);
    other->round_row(encoding, b, width);
    compare_floats("rounding", NAMES[encoding], a, b, (size_t)width);
    free(first);
    free(second);
    free(x);
    free(a);
    free(b);
}

static float* numbers(size_t count) {
    float* x = malloc(count * sizeof *x);
    fill_numbers(x, count);
    return x;
}

static float* copy_of(const float* x, size_t count) {
    float* copy = malloc(count * sizeof *copy);
    memcpy(copy, x, count * sizeof *copy);
    return copy;
}

/* Both tables compute on copies of `x`, called `y`, which are compared. */
#define COMPARE_IN_PLACE(what, which, x, count, call)                                  \
    do {                                                                               \
        float *expected = copy_of(x, count), *result = copy_of(x, count), *y;          \
        const kernel_table* table = &kernels_scalar;                                   \
        y = expected;                                                                  \
        call;                                                                          \
        table = other;                                                                \
        y = result;                                                                    \
        call;                                                                          \
        compare_floats(what, which, expected, result, count);                          \
        free(expected);                                                                \
        free(result);                                                                  \
    } while (0)

static void compare_rows(int width) {
    const size_t count = (size_t)width;
    float *x = numbers(count), *z = numbers(count), *weight = numbers(count);
    COMPARE_IN_PLACE("exp", "", x, count, table->exp_row(x, width, y));
    COMPARE_IN_PLACE("log softmax", "", x, count, table->log_softmax_row(x, width, y));
    COMPARE_IN_PLACE("softmax", "", x, count, table->softmax_row(y, width));
    COMPARE_IN_PLACE("sigmoid", "", x, count, table->sigmoid_row(y, width));
    COMPARE_IN_PLACE("sum", "", x, count, y[0] = table->sum_row(x, width));
    COMPARE_IN_PLACE("residual", "", x, count, table->add_row(y, z, width));
    COMPARE_IN_PLACE("scaled residual", "", x, count, table->add_scaled_row(y, z, 0.22f, width));
    COMPARE_IN_PLACE("scale", "", x, count, table->scale_row(y, 1.7f, 0.0f, width));
    COMPARE_IN_PLACE("scale", "softcap", x, count, table->scale_row(y, 1.7f, 30.0f, width));
    COMPARE_IN_PLACE("gate", "", x, count, table->sigmoid_gate_row(y, z, width));
    for (norm_kind kind = NORM_RMS; kind <= NORM_LAYER; kind++) {
        const norm_spec norms[] = {{kind, 1e-5f, weight}, {kind, 1e-6f, NULL}};
        COMPARE_IN_PLACE("norm", "", x, count, table->norm_row(&norms[0], x, width, y));
        COMPARE_IN_PLACE("norm", "without weights", x, count, table->norm_row(&norms[1], x, width, y));
    }
    const activation_spec activations[] = {{.kind = ACTIVATION_SILU}, {.kind = ACTIVATION_GELU_TANH}, {ACTIVATION_SILU_CLAMPED, 1.702f, 7.0f}};
    for (int i = 0; i < 3; i++) {
        COMPARE_IN_PLACE("activation", "", x, count, table->activate_row(&activations[i], y, z, width));
    }
    free(x);
    free(z);
    free(weight);
}

static void compare_rope(int num_heads, int stride, int rope_dim, int interleaved) {
    const size_t count = (size_t)num_heads * (size_t)stride;
    float *x = numbers(count), *cosines = numbers((size_t)rope_dim), *sines = numbers((size_t)rope_dim);
    COMPARE_IN_PLACE("rope", "", x, count, table->rope_row(y, num_heads, stride, rope_dim, interleaved, cosines, sines));
    free(x);
    free(cosines);
    free(sines);
}

/* Positions are stored by each table in a cache of its own, then looked at by both. */
static void compare_attention(kv_type type, int num_heads, int head_dim, int num_rows, int first_position, int window, int kv_rank) {
    enum { BLOCK_TOKENS = 16, NUM_KV_HEADS = 2 };
    const int positions = first_position + num_rows, num_blocks = (positions + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const int value_dim = kv_rank ? 0 : head_dim, out_dim = kv_rank ? kv_rank : value_dim, key_width = NUM_KV_HEADS * head_dim;
    const size_t count = (size_t)num_rows * (size_t)num_heads * (size_t)out_dim;
    const size_t score_numbers = MAX_QUERIES_AT_ONCE * ((size_t)(positions + 15) / 16 * 16);
    int32_t* block_table = malloc((size_t)num_blocks * sizeof *block_table);
    float *keys = numbers((size_t)positions * (size_t)key_width), *values = numbers((size_t)positions * (size_t)key_width);
    float *queries = numbers((size_t)num_rows * (size_t)num_heads * (size_t)head_dim), *sinks = numbers((size_t)num_heads);
    float *scores = malloc(score_numbers * sizeof *scores), *zeros = calloc(count, sizeof *zeros);
    kv_cache caches[2];
    for (int i = 0; i < 2; i++) {
        kv_cache_create(&caches[i], type, num_blocks, BLOCK_TOKENS, NUM_KV_HEADS, head_dim, value_dim);
    }
    for (int b = 0; b < num_blocks; b++) {
        block_table[b] = num_blocks - 1 - b;
    }
    for (int p = 0; p < positions; p++) {
        const int block = block_table[p / BLOCK_TOKENS], within = p % BLOCK_TOKENS;
        const size_t row = (size_t)p * (size_t)key_width;
        kernels_scalar.store_position(&caches[0], block, within, keys + row, values + row);
        other->store_position(&caches[1], block, within, keys + row, values + row);
    }
    compare_bytes("stored positions", "", caches[0].memory, caches[1].memory, (size_t)num_blocks * caches[0].block_bytes);
    attention_task task = {
        .cache = &caches[0], .block_table = block_table, .kv_head = 1, .num_rows = num_rows, .num_heads = num_heads,
        .first_position = first_position, .window = window, .kv_rank = kv_rank, .scale = 0.125f, .softcap = window ? 20.0f : 0.0f,
        .sinks = window ? sinks : NULL, .queries = queries, .query_stride = (size_t)head_dim, .ld_queries = (size_t)(num_heads * head_dim),
        .ld_out = (size_t)(num_heads * out_dim), .scores = scores,
    };
    COMPARE_IN_PLACE("attention", "", zeros, count, (task.out = y, table->attention(&task)));
    for (int i = 0; i < 2; i++) {
        kv_cache_free(&caches[i]);
    }
    free(block_table);
    free(keys);
    free(values);
    free(queries);
    free(sinks);
    free(scores);
    free(zeros);
}

/* A convolution, and then the rule, over states of its own. */
static void compare_linear(int num_rows, int key_dim, int value_dim, int tiled, int goes_on) {
    const linear_shape shape = {.num_key_heads = 2, .num_value_heads = 4, .key_dim = key_dim, .value_dim = value_dim, .conv_width = 4, .tiled = tiled};
    const int channels = linear_channels(&shape), heads = shape.num_value_heads, width = linear_value_width(&shape);
    const size_t mixed_count = (size_t)num_rows * (size_t)channels, head_count = (size_t)num_rows * (size_t)heads;
    const size_t out_count = (size_t)num_rows * (size_t)width, state_count = linear_state_numbers(&shape);
    float *mixed = numbers(mixed_count), *conv = numbers((size_t)(shape.conv_width * channels)), *decay = numbers((size_t)heads);
    float *bias = numbers((size_t)heads), *alpha = numbers(head_count), *beta = numbers(head_count), *gate = numbers(out_count);
    float *before = numbers(state_count), *weight = numbers((size_t)value_dim);
    float* results[2][3];
    const norm_spec norm = {NORM_RMS, 1e-6f, weight};
    for (int h = 0; h < heads; h++) {
        decay[h] = decay[h] < 0 ? decay[h] : -decay[h];
    }
    for (int i = 0; i < 2; i++) {
        const kernel_table* table = i ? other : &kernels_scalar;
        float *own_mixed = copy_of(mixed, mixed_count), *own_alpha = copy_of(alpha, head_count), *own_beta = copy_of(beta, head_count);
        float *after = calloc(state_count, sizeof *after), *out = calloc(out_count, sizeof *out), *own_gate = copy_of(gate, out_count);
        const linear_task task = {&shape, num_rows, own_mixed, conv, own_alpha, own_beta, out, goes_on ? before : NULL, after};
        table->linear_convolve(&task, 0, channels);
        for (int r = 0; r < num_rows; r++) {
            table->linear_prepare_row(&shape, decay, bias, own_mixed + r * channels, own_alpha + r * heads, own_beta + r * heads);
        }
        for (int head = 0; head < heads; head++) {
            for (int part = 0; part < linear_num_parts(&shape); part++) {
                table->linear_recur(&task, head, part);
            }
        }
        for (int r = 0; r < num_rows; r++) {
            table->linear_finish_row(&shape, &norm, out + r * width, own_gate + r * width);
        }
        results[i][0] = out;
        results[i][1] = own_gate;
        results[i][2] = after;
        free(own_mixed);
        free(own_alpha);
        free(own_beta);
    }
    compare_floats("linear attention", "out", results[0][0], results[1][0], out_count);
    compare_floats("linear attention", "gated", results[0][1], results[1][1], out_count);
    compare_floats("linear attention", "state", results[0][2], results[1][2], state_count);
    for (int i = 0; i < 6; i++) {
        free(results[i / 3][i % 3]);
    }
    float* const all[] = {mixed, conv, decay, bias, alpha, beta, gate, before, weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
}

static void compare_quantiser(int num_blocks) {
    float* x = numbers(32 * (size_t)num_blocks);
    uint8_t *a = malloc(34 * (size_t)num_blocks), *b = malloc(34 * (size_t)num_blocks);
    kernels_scalar.quantize_q8_0(x, (size_t)num_blocks, a);
    other->quantize_q8_0(x, (size_t)num_blocks, b);
    compare_bytes("quantising", "Q8_0", a, b, 34 * (size_t)num_blocks);
    free(x);
    free(a);
    free(b);
}

static void compare_with(const kernel_table* table) {
    other = table;
    state = 1;
    failures = 0;
    static const int ROWS[] = {1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 33};
    for (int format = 0; format < NUM_FORMATS; format++) {
        for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
            compare_matmul(format, 1 + (int)(draw() % 40), 1 + (int)(draw() % 5), ROWS[i], i % 2);
        }
        compare_matmul(format, 17, 2304 / BLOCK_FORMATS[format].block_size, 9, 0);
    }
    for (int encoding = 0; encoding < NUM_ENCODINGS; encoding++) {
        for (int width = 1; width < 200; width += 13) {
            compare_wire(encoding, width);
        }
    }
    for (int width = 1; width < 100; width += 7) {
        compare_rows(width);
    }
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        compare_rope(3, 64, 64, interleaved);
        compare_rope(2, 96, 24, interleaved);
        compare_rope(5, 10, 6, interleaved);
    }
    for (kv_type type = KV_F16; type <= KV_Q8_0; type++) {
        compare_attention(type, 3, 64, 5, 0, 0, 0);
        compare_attention(type, 4, 80, 1, 100, 0, 0);
        compare_attention(type, 2, 20, 7, 37, 9, 0);
        compare_attention(type, 3, 64, 21, 290, 0, 0);
        compare_attention(type, 2, 136, 20, 70, 33, 0);
        compare_attention(type, 5, 72, 3, 30, 0, 64);
        compare_attention(type, 16, 72, 5, 300, 0, 64);
        compare_linear(1, 32, 32, type == KV_F16, 1);
        compare_linear(6, 24, 40, type == KV_F16, 0);
        compare_linear(3, 16, 80, type == KV_F16, 1);
    }
    compare_quantiser(37);
    printf("%s: %d differences\n", other->name, failures);
}

int main(void) {
#if defined(TABLES)
    const kernel_table* const tables[] = {TABLES};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        compare_with(tables[i]);
    }
#else
    for (int i = 1; i < num_available_isas(); i++) {
        select_isa(available_isa(i));
        compare_with(active_kernels());
    }
#endif
    return 0;
}
