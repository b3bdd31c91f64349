/* Heads that carry a state along instead of looking back (linear.h). */
#include "linear.h"
#include "phases.h"

enum { NUMBERS_PER_CHUNK = 2048 }; /* of the convolution: about 1 us */

typedef struct {
    float *mixed, *gate, *alpha, *beta, *out;
    int channels_per_chunk;
} linear_parts;

static linear_parts lay_out(const linear_attention* a, int rows, scratch_cursor* cursor) {
    const size_t row_bytes = (size_t)rows * sizeof(float);
    linear_parts parts;
    parts.mixed = take_scratch(cursor, row_bytes * (size_t)a->qkv->outputs);
    parts.gate = take_scratch(cursor, row_bytes * (size_t)a->gate->outputs);
    parts.alpha = take_scratch(cursor, row_bytes * (size_t)a->alpha->outputs);
    parts.beta = take_scratch(cursor, row_bytes * (size_t)a->beta->outputs);
    parts.out = take_scratch(cursor, row_bytes * (size_t)a->gate->outputs);
    parts.channels_per_chunk = (NUMBERS_PER_CHUNK / rows + 15) / 16 * 16;
    return parts;
}

static int bind(stage* s, stage_layer* layer) {
    (void)s;
    (void)layer;
    return 0;
}

static void measure(const stage_layer* layer, int rows, scratch_need* need) {
    const linear_attention* a = &layer->attention.linear;
    scratch_cursor cursor = {0};
    lay_out(a, rows, &cursor);
    need_block(need, cursor.at);
    need_activations(need, rows, 4, (const packed_matrix*[]){a->qkv, a->gate, a->alpha, a->beta});
    need_activations(need, rows, 1, &a->output);
}

static float* state_of(const phase* p, int slot) { return slot < 0 ? NULL : (float*)kv_cache_block(p->cache, slot); }

static linear_task task_of(const phase* p, int slice) {
    const linear_attention* a = &p->layer->attention.linear;
    const linear_parts* parts = p->block;
    const stage_slice* own = &p->batch->slices[slice];
    const int32_t* slots = own->state_slots + 2 * (p->layer - p->s->layers);
    size_t row = 0;
    for (int i = 0; i < slice; i++) {
        row += (size_t)p->batch->slices[i].num_rows;
    }
    return (linear_task){
        .shape = &a->shape,
        .num_rows = own->num_rows,
        .mixed = parts->mixed + row * (size_t)a->qkv->outputs,
        .conv = a->conv,
        .decay = parts->alpha + row * (size_t)a->alpha->outputs,
        .beta = parts->beta + row * (size_t)a->beta->outputs,
        .out = parts->out + row * (size_t)a->gate->outputs,
        .state_before = state_of(p, slots[0]),
        .state_after = state_of(p, slots[1]),
    };
}

/* Item = (slice, some channels). */
static void convolve(void* context, int chunk) {
    const phase* p = context;
    const linear_parts* parts = p->block;
    const int channels = p->layer->attention.linear.qkv->outputs, chunks_per_slice = p->num_chunks / p->batch->num_slices;
    const int begin = chunk % chunks_per_slice * parts->channels_per_chunk;
    const linear_task task = task_of(p, chunk / chunks_per_slice);
    p->kernels->linear_convolve(&task, begin, min_int(begin + parts->channels_per_chunk, channels));
}

static void prepare(void* context, int chunk) {
    const phase* p = context;
    const linear_attention* a = &p->layer->attention.linear;
    const linear_parts* parts = p->block;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        const size_t heads = (size_t)row * (size_t)a->alpha->outputs;
        float* mixed = parts->mixed + (size_t)row * (size_t)a->qkv->outputs;
        p->kernels->linear_prepare_row(&a->shape, a->decay, a->time_bias, mixed, parts->alpha + heads, parts->beta + heads);
    }
}

/* Item = (slice, value head, part of its columns). */
static void recur(void* context, int chunk) {
    const phase* p = context;
    const linear_shape* shape = &p->layer->attention.linear.shape;
    const int parts = linear_num_parts(shape), chunks_per_slice = parts * shape->num_value_heads;
    const linear_task task = task_of(p, chunk / chunks_per_slice);
    p->kernels->linear_recur(&task, chunk % chunks_per_slice / parts, chunk % parts);
}

static void finish(void* context, int chunk) {
    const phase* p = context;
    const linear_attention* a = &p->layer->attention.linear;
    const linear_parts* parts = p->block;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks), width = a->gate->outputs;
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        const size_t offset = (size_t)row * (size_t)width;
        p->kernels->linear_finish_row(&a->shape, &a->output_norm, parts->out + offset, parts->gate + offset);
    }
}

static void run(phase* p) {
    const linear_attention* a = &p->layer->attention.linear;
    scratch_cursor cursor = {p->s->scratch.block, 0};
    linear_parts parts = lay_out(a, p->num_rows, &cursor);
    const int num_slices = p->batch->num_slices;
    p->block = &parts;
    use_matrices(
        p, p->s->spec.hidden_size, 4, (const packed_matrix*[]){a->qkv, a->gate, a->alpha, a->beta},
        (float*[]){parts.mixed, parts.gate, parts.alpha, parts.beta}
    );
    take_input(p);
    multiply_all(p);
    run_phase(p, num_slices * ((a->qkv->outputs + parts.channels_per_chunk - 1) / parts.channels_per_chunk), convolve);
    run_rows(p, prepare);
    run_phase(p, num_slices * a->shape.num_value_heads * linear_num_parts(&a->shape), recur);
    run_rows(p, finish);
    add_output(p, a->output, NULL, parts.gate);
}

const block_kind LINEAR_ATTENTION = {.bind = bind, .measure = measure, .run = run};
