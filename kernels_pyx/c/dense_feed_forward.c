/* down(activation(gate(x)) * up(x)) */
#include "phases.h"

typedef struct {
    float *gate, *up;
} dense_parts;

static dense_parts lay_out(const dense_feed_forward* dense, int rows, scratch_cursor* cursor) {
    const size_t bytes = (size_t)rows * (size_t)dense->intermediate_size * sizeof(float);
    dense_parts parts;
    parts.gate = take_scratch(cursor, bytes);
    parts.up = take_scratch(cursor, bytes);
    return parts;
}

static void measure(const stage_layer* layer, int rows, scratch_need* need) {
    const dense_feed_forward* dense = &layer->feed_forward.dense;
    scratch_cursor cursor = {0};
    lay_out(dense, rows, &cursor);
    need_block(need, cursor.at);
    need_activations(need, rows, 2, (const packed_matrix*[]){dense->gate, dense->up});
    need_activations(need, rows, 1, &dense->down);
}

/* The columns of some tiles of both, in all rows. */
static void gate_and_up(void* context, int chunk) {
    const phase* p = context;
    const dense_feed_forward* dense = &p->layer->feed_forward.dense;
    const int tiles = num_tiles(dense->gate), width = dense->intermediate_size;
    const int begin = chunk_begin(tiles, chunk, p->num_chunks), end = chunk_begin(tiles, chunk + 1, p->num_chunks);
    const int first = begin * TILE_OUTPUTS, columns = min_int(end * TILE_OUTPUTS, width) - first;
    multiply(p, 0, begin, end);
    multiply(p, 1, begin, end);
    for (int row = 0; row < p->num_rows; row++) {
        const size_t offset = (size_t)row * (size_t)width + (size_t)first;
        float *gate = p->group.outputs[0] + offset, *up = p->group.outputs[1] + offset;
        if (dense->gate_bias) p->kernels->add_row(gate, dense->gate_bias + first, columns);
        if (dense->up_bias) p->kernels->add_row(up, dense->up_bias + first, columns);
        p->kernels->activate_row(&dense->activation, gate, up, columns);
    }
}

static void run(phase* p) {
    const dense_feed_forward* dense = &p->layer->feed_forward.dense;
    scratch_cursor cursor = {p->s->scratch.block, 0};
    const dense_parts parts = lay_out(dense, p->num_rows, &cursor);
    use_matrices(p, p->s->spec.hidden_size, 2, (const packed_matrix*[]){dense->gate, dense->up}, (float*[]){parts.gate, parts.up});
    take_input(p);
    run_phase(p, matmul_chunks(p, num_tiles(dense->gate)), gate_and_up);
    add_output(p, dense->down, dense->down_bias, parts.gate);
}

const block_kind DENSE_FEED_FORWARD = {.measure = measure, .run = run};
