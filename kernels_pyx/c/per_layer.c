/* Numbers that each token has for each layer: the embedding makes them, rows carry them along, each layer adds its own. */
#include <string.h>

#include "packing.h"
#include "phases.h"

/* ---- in the embedding ---- */

void measure_per_layer_embedding(const stage* s, scratch_need* need) {
    if (s->per_layer.width) {
        need_block(need, (size_t)s->max_rows * (size_t)s->per_layer.projection->outputs * sizeof(float));
        need_activations(need, s->max_rows, 1, &s->per_layer.projection);
    }
}

static void combine_rows(void* context, int chunk) {
    const phase* p = context;
    const per_layer_embedding* per_layer = &p->s->per_layer;
    const int width = per_layer->projection->outputs, end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float *projected = p->group.outputs[0] + (size_t)row * (size_t)width, *carried = carried_row(p, row, 0);
        for (int i = 0; i < width; i += per_layer->width) {
            p->kernels->norm_row(&per_layer->norm, projected + i, per_layer->width, projected + i);
        }
        dequantize_row(per_layer->table, p->batch->token_ids[row], carried);
        p->kernels->add_scaled_row(projected, carried, per_layer->embedding_scale, width);
        p->kernels->scale_row(projected, per_layer->scale, 0.0f, width);
        memcpy(carried, projected, (size_t)width * sizeof *carried);
        round_carried(p, carried, width);
    }
}

void run_per_layer_embedding(phase* p) {
    const per_layer_embedding* per_layer = &p->s->per_layer;
    use_matrices(p, p->s->spec.hidden_size, 1, &per_layer->projection, (float*[]){(float*)p->s->scratch.block});
    prepare_all(p, p->s->scratch.x);
    multiply_all(p);
    run_rows(p, combine_rows);
}

/* ---- in a layer ---- */

void measure_per_layer_input(const stage_layer* layer, int rows, scratch_need* need) {
    const per_layer_input* input = &layer->input;
    if (input->width) {
        need_block(need, (size_t)rows * (size_t)input->width * sizeof(float));
        need_activations(need, rows, 1, &input->gate);
        need_activations(need, rows, 1, &input->output);
    }
}

static void gate_rows(void* context, int chunk) {
    const phase* p = context;
    const per_layer_input* input = &p->layer->input;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float* gate = p->group.outputs[0] + (size_t)row * (size_t)input->width;
        p->kernels->activate_row(&input->activation, gate, carried_row(p, row, input->offset), input->width);
    }
}

void run_per_layer_input(phase* p) {
    const per_layer_input* input = &p->layer->input;
    float* gate = (float*)p->s->scratch.block;
    p->post_norm = input->post_norm;
    p->residual_scale = 1.0f;
    use_matrices(p, p->s->spec.hidden_size, 1, &input->gate, &gate);
    prepare_all(p, p->s->scratch.x);
    multiply_all(p);
    run_rows(p, gate_rows);
    add_output(p, input->output, NULL, gate);
}
