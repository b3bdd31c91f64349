/* Heads over the keys and values of the positions that a row sees. */
#include <string.h>

#include "attention.h"
#include "phases.h"

typedef struct {
    float *q, *k, *v, *attended;
} attention_parts;

static attention_parts lay_out(const self_attention* a, int rows, scratch_cursor* cursor) {
    const size_t row_bytes = (size_t)rows * sizeof(float);
    attention_parts parts;
    parts.q = take_scratch(cursor, row_bytes * (size_t)a->q->outputs);
    parts.k = take_scratch(cursor, a->k ? row_bytes * (size_t)a->k->outputs : 0);
    parts.v = take_scratch(cursor, a->v ? row_bytes * (size_t)a->v->outputs : 0);
    parts.attended = take_scratch(cursor, row_bytes * (size_t)a->output->inputs);
    return parts;
}

static int bind(stage* s, stage_layer* layer) {
    self_attention* a = &layer->attention.self;
    a->angles = a->rope.dim ? use_angles(s, &a->rope) : 0;
    return a->angles < 0 ? -1 : 0;
}

static void measure(const stage_layer* layer, int rows, scratch_need* need) {
    const self_attention* a = &layer->attention.self;
    scratch_cursor cursor = {0};
    lay_out(a, rows, &cursor);
    need_block(need, cursor.at);
    need_activations(need, rows, a->k ? 3 : 1, (const packed_matrix*[]){a->q, a->k, a->v});
    need_activations(need, rows, 1, &a->output);
}

/* Numbers from a head's queries to the next one's. */
static int query_stride(const self_attention* a) { return a->key_dim * (a->output_gate ? 2 : 1); }

/* x: heads of `width` numbers, `stride` numbers apart. */
static void norm_heads(const phase* p, const norm_spec* norm, float* x, int num_heads, int stride, int width) {
    if (norm->kind != NORM_NONE) {
        for (int head = 0; head < num_heads; head++, x += stride) {
            p->kernels->norm_row(norm, x, width, x);
        }
    }
}

static void rotate_heads(const phase* p, const self_attention* a, int row, float* x, int num_heads, int stride) {
    if (a->rope.dim) {
        const size_t half = (size_t)a->rope.dim / 2, offset = p->s->tables[a->angles].offset;
        const float* cosines = p->s->scratch.angles + offset + (size_t)row * half;
        p->kernels->rope_row(x, num_heads, stride, a->rope.dim, a->rope.interleaved, cosines, cosines + (size_t)p->s->max_rows * half);
    }
}

static void make_queries(const phase* p, const self_attention* a, int row, float* q) {
    const int heads = a->norm_spans_heads ? 1 : a->num_heads, width = a->norm_spans_heads ? a->q->outputs : a->key_dim;
    if (a->q_bias) p->kernels->add_row(q, a->q_bias, a->q->outputs);
    norm_heads(p, &a->q_norm, q, heads, query_stride(a), width);
    rotate_heads(p, a, row, q, a->num_heads, query_stride(a));
}

static void make_keys_and_values(const phase* p, const self_attention* a, int row, float* k, float* v) {
    const int heads = a->norm_spans_heads ? 1 : a->num_kv_heads, width = a->norm_spans_heads ? a->k->outputs : a->key_dim;
    if (a->k_bias) p->kernels->add_row(k, a->k_bias, a->k->outputs);
    if (a->v_bias) p->kernels->add_row(v, a->v_bias, a->v->outputs);
    norm_heads(p, &a->k_norm, k, heads, a->key_dim, width);
    norm_heads(p, &a->v_norm, v, a->num_kv_heads, a->value_dim, a->value_dim);
    rotate_heads(p, a, row, k, a->num_kv_heads, a->key_dim);
}

static void carry(const phase* p, const self_attention* a, int row, const float* k, const float* v) {
    float* carried = carried_row(p, row, a->carried_keys);
    memcpy(carried, k, (size_t)a->k->outputs * sizeof *k);
    memcpy(carried + a->k->outputs, v, (size_t)a->v->outputs * sizeof *v);
    round_carried(p, carried, a->k->outputs + a->v->outputs);
}

static void store_row_of(const phase* p, int row, const float* k, const float* v) {
    const scratch_parts* scratch = &p->s->scratch;
    const int position = scratch->row_position[row], block_tokens = p->cache->block_tokens;
    const int block = p->batch->slices[scratch->row_slice[row]].block_table[position / block_tokens];
    p->kernels->store_position(p->cache, block, position % block_tokens, k, v);
}

static void rotate_and_store_rows(void* context, int chunk) {
    const phase* p = context;
    const self_attention* a = &p->layer->attention.self;
    const attention_parts* parts = p->block;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        make_queries(p, a, row, parts->q + (size_t)row * (size_t)a->q->outputs);
        if (!a->k) {
            const float* k = carried_row(p, row, a->carried_keys);
            store_row_of(p, row, k, k + a->num_kv_heads * a->key_dim);
            continue;
        }
        float *k = parts->k + (size_t)row * (size_t)a->k->outputs, *v = parts->v + (size_t)row * (size_t)a->v->outputs;
        make_keys_and_values(p, a, row, k, v);
        store_row_of(p, row, k, v);
        if (a->carried_keys >= 0) {
            carry(p, a, row, k, v);
        }
    }
}

/* Item = (group of rows, part of the heads); the last groups see the most positions and come first, so that no long item is left for the end. */
static void attend(void* context, int chunk) {
    const phase* p = context;
    const self_attention* a = &p->layer->attention.self;
    const attention_parts* parts = p->block;
    const row_group* group = &p->s->scratch.groups[p->num_row_groups - 1 - chunk / p->attention_parts];
    const int part = chunk % p->attention_parts, heads_per_part = a->num_heads / p->attention_parts, head = part * heads_per_part;
    const attention_task task = {
        .cache = p->cache,
        .block_table = p->batch->slices[group->slice].block_table,
        .kv_head = head / (a->num_heads / a->num_kv_heads),
        .num_rows = group->num_rows,
        .num_heads = heads_per_part,
        .first_position = group->first_position,
        .window = a->window,
        .scale = a->scale,
        .softcap = a->softcap,
        .sinks = a->sinks ? a->sinks + head : NULL,
        .queries = parts->q + (size_t)group->first_row * (size_t)a->q->outputs + (size_t)head * (size_t)query_stride(a),
        .query_stride = (size_t)query_stride(a),
        .ld_queries = (size_t)a->q->outputs,
        .out = parts->attended + (size_t)group->first_row * (size_t)a->output->inputs + (size_t)head * (size_t)a->value_dim,
        .ld_out = (size_t)a->output->inputs,
        .scores = p->s->scratch.scores + (size_t)pool_thread_index() * score_numbers(p->s),
    };
    p->kernels->attention(&task);
}

static void gate_rows(void* context, int chunk) {
    const phase* p = context;
    const self_attention* a = &p->layer->attention.self;
    const attention_parts* parts = p->block;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float* attended = parts->attended + (size_t)row * (size_t)a->output->inputs;
        const float* gate = parts->q + (size_t)row * (size_t)a->q->outputs + a->key_dim;
        for (int head = 0; head < a->num_heads; head++, attended += a->value_dim, gate += query_stride(a)) {
            p->kernels->sigmoid_gate_row(attended, gate, a->value_dim);
        }
    }
}

/* Heads that share keys go together unless that leaves too little to share out. */
static int parts_of_heads(const phase* p, const self_attention* a) {
    const int threads = p->s->num_threads, items = p->num_row_groups * a->num_kv_heads;
    return threads > 1 && items < 4 * threads ? a->num_heads : a->num_kv_heads;
}

static void run(phase* p) {
    const self_attention* a = &p->layer->attention.self;
    scratch_cursor cursor = {p->s->scratch.block, 0};
    attention_parts parts = lay_out(a, p->num_rows, &cursor);
    p->block = &parts;
    p->attention_parts = parts_of_heads(p, a);
    const packed_matrix* matrices[] = {a->q, a->k, a->v};
    use_matrices(p, p->s->spec.hidden_size, a->k ? 3 : 1, matrices, (float*[]){parts.q, parts.k, parts.v});
    take_input(p);
    multiply_all(p);
    run_rows(p, rotate_and_store_rows);
    run_phase(p, p->num_row_groups * p->attention_parts, attend);
    if (a->output_gate) {
        run_rows(p, gate_rows);
    }
    add_output(p, a->output, a->output_bias, parts.attended);
}

const block_kind SELF_ATTENTION = {.bind = bind, .measure = measure, .run = run};
