/* Linear attention: the gated delta rule (arXiv:2412.06464) over heads that keep a state, and the convolution before it.

   The state of one sequence in one layer, in float32, first the last inputs of the convolution, [conv_width - 1][channels], the oldest
   first, filled up to whole groups of 16 numbers; then, value head after value head, the numbers [key_dim][value_dim] in parts of up to 64
   columns, one part after the other, columns filled up to 16. Positions before the first count as zeros. States travel between machines
   in this form: whoever changes it changes the protocol's version. */
#ifndef DAIRLLM_LINEAR_H
#define DAIRLLM_LINEAR_H

#include <stddef.h>

enum { LINEAR_PART_VECTORS = 4, LINEAR_PART_COLUMNS = 16 * LINEAR_PART_VECTORS };

typedef struct linear_shape {
    int num_key_heads, num_value_heads, key_dim, value_dim, conv_width;
    int tiled; /* value head i has key head i % num_key_heads, else i / (num_value_heads / num_key_heads) */
} linear_shape;

/* What one call computes over consecutive rows of one sequence. A row of `mixed` has queries, keys and values: the channels. */
typedef struct linear_task {
    const linear_shape* shape;
    int num_rows;
    float* mixed;             /* [rows][channels] */
    const float* conv;        /* [conv_width][channels] */
    const float *decay, *beta; /* [rows][num_value_heads] */
    float* out;               /* [rows][num_value_heads * value_dim] */
    const float* state_before; /* NULL: the sequence begins */
    float* state_after;       /* another one */
} linear_task;

static inline size_t linear_whole_lanes(size_t numbers) { return (numbers + 15) / 16 * 16; }

static inline int linear_key_width(const linear_shape* s) { return s->num_key_heads * s->key_dim; }

static inline int linear_value_width(const linear_shape* s) { return s->num_value_heads * s->value_dim; }

static inline int linear_channels(const linear_shape* s) { return 2 * linear_key_width(s) + linear_value_width(s); }

static inline size_t linear_conv_numbers(const linear_shape* s) {
    return linear_whole_lanes((size_t)(s->conv_width - 1) * (size_t)linear_channels(s));
}

static inline size_t linear_head_numbers(const linear_shape* s) { return (size_t)s->key_dim * linear_whole_lanes((size_t)s->value_dim); }

static inline size_t linear_state_numbers(const linear_shape* s) {
    return linear_conv_numbers(s) + (size_t)s->num_value_heads * linear_head_numbers(s);
}

static inline int linear_num_parts(const linear_shape* s) { return (s->value_dim + LINEAR_PART_COLUMNS - 1) / LINEAR_PART_COLUMNS; }

#endif
