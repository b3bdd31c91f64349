/* Heads over latents (latent.inc.h): queries are taken into the latents' space by k_b, outputs out of it by v_b. Rows go through it in
   parts, since there a row has a latent for every head. */
#include "attention.h"
#include "phases.h"

#include <string.h>

enum { LATENT_ROWS = 64 }; /* of a part, at least one group of rows */

typedef struct {
    float *query_latent, *kv, *q, *attended;
    float *absorbed, *mixed;                 /* of a part */
    uint8_t* activations;                    /* head after head */
    size_t head_bytes;
    int first_group, num_groups, first_row, num_rows; /* the part */
    int heads_at_once;
} latent_parts;

static int query_dim(const latent_attention* a) { return a->key_dim + a->rope.dim; }

static int latent_dim(const latent_attention* a) { return a->kv_rank + a->rope.dim; }

static latent_parts lay_out(const latent_attention* a, int rows, scratch_cursor* cursor) {
    const size_t row_bytes = (size_t)rows * sizeof(float), heads = (size_t)a->num_heads;
    const int part = min_int(rows, LATENT_ROWS);
    const size_t up = activation_bytes(a->k_b->all.format, part, a->key_dim), out = activation_bytes(a->v_b->all.format, part, a->kv_rank);
    latent_parts parts = {.head_bytes = (max_size(up, out) + 63) / 64 * 64};
    parts.query_latent = take_scratch(cursor, row_bytes * (size_t)(a->q_a ? a->q_a->outputs : 0));
    parts.kv = take_scratch(cursor, row_bytes * (size_t)a->kv_a->outputs);
    parts.q = take_scratch(cursor, row_bytes * (size_t)a->q->outputs);
    parts.attended = take_scratch(cursor, row_bytes * (size_t)a->output->inputs);
    parts.absorbed = take_scratch(cursor, (size_t)part * heads * (size_t)latent_dim(a) * sizeof(float));
    parts.mixed = take_scratch(cursor, (size_t)part * heads * (size_t)a->kv_rank * sizeof(float));
    parts.activations = take_scratch(cursor, heads * parts.head_bytes);
    return parts;
}

static int bind(stage* s, stage_layer* layer) {
    latent_attention* a = &layer->attention.latent;
    a->angles = use_angles(s, &a->rope);
    return a->angles < 0 ? -1 : 0;
}

static const packed_matrix* first_query_matrix(const latent_attention* a) { return a->q_a ? a->q_a : a->q; }

static void measure(const stage_layer* layer, int rows, scratch_need* need) {
    const latent_attention* a = &layer->attention.latent;
    scratch_cursor cursor = {0};
    lay_out(a, rows, &cursor);
    need_block(need, cursor.at);
    need_activations(need, rows, 2, (const packed_matrix*[]){first_query_matrix(a), a->kv_a});
    need_activations(need, rows, 1, &a->q);
    need_activations(need, rows, 1, &a->output);
}

static void rotate(const phase* p, const latent_attention* a, int row, float* x, int num_heads, int stride) {
    const size_t half = (size_t)a->rope.dim / 2;
    const float* cosines = p->s->scratch.angles + p->s->tables[a->angles].offset + (size_t)row * half;
    p->kernels->rope_row(x, num_heads, stride, a->rope.dim, a->rope.interleaved, cosines, cosines + (size_t)p->s->max_rows * half);
}

/* Latents go into the cache; the queries' own latents become the input of q_b. */
static void store_rows(void* context, int chunk) {
    const phase* p = context;
    const latent_attention* a = &p->layer->attention.latent;
    const latent_parts* parts = p->block;
    const scratch_parts* scratch = &p->s->scratch;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks), block_tokens = p->cache->block_tokens;
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float* kv = parts->kv + (size_t)row * (size_t)a->kv_a->outputs;
        if (a->kv_a_bias) p->kernels->add_row(kv, a->kv_a_bias, a->kv_a->outputs);
        p->kernels->norm_row(&a->latent_norm, kv, a->kv_rank, kv);
        rotate(p, a, row, kv + a->kv_rank, 1, a->rope.dim);
        const int position = scratch->row_position[row];
        const int block = p->batch->slices[scratch->row_slice[row]].block_table[position / block_tokens];
        p->kernels->store_position(p->cache, block, position % block_tokens, kv, NULL);
        if (a->q_a) {
            float* latent = parts->query_latent + (size_t)row * (size_t)a->q_a->outputs;
            if (a->q_a_bias) p->kernels->add_row(latent, a->q_a_bias, a->q_a->outputs);
            p->kernels->norm_row(&a->query_norm, latent, a->q_a->outputs, latent);
            prepare_row(p, latent, row);
        }
    }
}

static void rotate_rows(void* context, int chunk) {
    const phase* p = context;
    const latent_attention* a = &p->layer->attention.latent;
    const latent_parts* parts = p->block;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        rotate(p, a, row, parts->q + (size_t)row * (size_t)a->q->outputs + a->key_dim, a->num_heads, query_dim(a));
    }
}

/* y [rows, ldy] = matrix * x [rows, ldx], for the part's rows of one head. */
static void multiply_head(const phase* p, int head, const packed_stack* stack, const float* x, size_t ldx, float* y, size_t ldy) {
    const latent_parts* parts = p->block;
    const packed_matrix matrix = stack_matrix(stack, head);
    uint8_t* activations = parts->activations + (size_t)head * parts->head_bytes;
    p->kernels->prepare_activations(matrix.format, x, ldx, 0, parts->num_rows, parts->num_rows, matrix.inputs, activations);
    p->kernels->matmul_tiles(&matrix, activations, parts->num_rows, y, ldy, 0, num_tiles(&matrix));
}

/* Queries of a head into the latents' space. */
static void absorb(void* context, int head) {
    const phase* p = context;
    const latent_attention* a = &p->layer->attention.latent;
    const latent_parts* parts = p->block;
    const size_t ldx = (size_t)a->q->outputs, ldy = (size_t)a->num_heads * (size_t)latent_dim(a);
    const float* x = parts->q + (size_t)parts->first_row * ldx + (size_t)head * (size_t)query_dim(a);
    float* y = parts->absorbed + (size_t)head * (size_t)latent_dim(a);
    multiply_head(p, head, a->k_b, x, ldx, y, ldy);
    for (int row = 0; row < parts->num_rows; row++, x += ldx, y += ldy) {
        memcpy(y + a->kv_rank, x + a->key_dim, (size_t)a->rope.dim * sizeof *y);
    }
}

/* Item = (group of rows, some heads); the last groups come first, since they see the most positions. */
static void attend(void* context, int chunk) {
    const phase* p = context;
    const latent_attention* a = &p->layer->attention.latent;
    const latent_parts* parts = p->block;
    const int items = p->num_chunks / parts->num_groups, head = chunk % items * parts->heads_at_once;
    const row_group* group = &p->s->scratch.groups[parts->first_group + parts->num_groups - 1 - chunk / items];
    const size_t row = (size_t)(group->first_row - parts->first_row);
    const size_t ld_queries = (size_t)a->num_heads * (size_t)latent_dim(a), ld_out = (size_t)a->num_heads * (size_t)a->kv_rank;
    const attention_task task = {
        .cache = p->cache,
        .block_table = p->batch->slices[group->slice].block_table,
        .kv_rank = a->kv_rank,
        .num_rows = group->num_rows,
        .num_heads = min_int(parts->heads_at_once, a->num_heads - head),
        .first_position = group->first_position,
        .scale = a->scale,
        .queries = parts->absorbed + row * ld_queries + (size_t)head * (size_t)latent_dim(a),
        .query_stride = (size_t)latent_dim(a),
        .ld_queries = ld_queries,
        .out = parts->mixed + row * ld_out + (size_t)head * (size_t)a->kv_rank,
        .ld_out = ld_out,
        .scores = p->s->scratch.scores + (size_t)pool_thread_index() * score_numbers(p->s),
    };
    p->kernels->attention(&task);
}

/* Outputs of a head out of the latents' space. */
static void expand(void* context, int head) {
    const phase* p = context;
    const latent_attention* a = &p->layer->attention.latent;
    const latent_parts* parts = p->block;
    const size_t ldx = (size_t)a->num_heads * (size_t)a->kv_rank, ldy = (size_t)a->output->inputs;
    float* y = parts->attended + (size_t)parts->first_row * ldy + (size_t)head * (size_t)a->value_dim;
    multiply_head(p, head, a->v_b, parts->mixed + (size_t)head * (size_t)a->kv_rank, ldx, y, ldy);
}

/* Heads share a pass over the latents unless that leaves too little to share out. */
static int heads_at_once(const phase* p, const latent_attention* a, int num_groups) {
    const int least = a->num_heads * num_groups / (4 * p->s->num_threads);
    return least < 1 ? 1 : min_int(least, MAX_QUERIES_AT_ONCE);
}

/* The next groups of rows, as many as a part holds. */
static int next_part(const phase* p, latent_parts* parts) {
    const row_group* groups = p->s->scratch.groups;
    parts->first_group += parts->num_groups;
    parts->num_groups = parts->num_rows = 0;
    if (parts->first_group == p->num_row_groups) {
        return 0;
    }
    parts->first_row = groups[parts->first_group].first_row;
    for (int g = parts->first_group; g < p->num_row_groups && parts->num_rows + groups[g].num_rows <= LATENT_ROWS; g++) {
        parts->num_rows += groups[g].num_rows;
        parts->num_groups++;
    }
    return 1;
}

static void run(phase* p) {
    const latent_attention* a = &p->layer->attention.latent;
    scratch_cursor cursor = {p->s->scratch.block, 0};
    latent_parts parts = lay_out(a, p->num_rows, &cursor);
    p->block = &parts;
    use_matrices(
        p, p->s->spec.hidden_size, 2, (const packed_matrix*[]){first_query_matrix(a), a->kv_a},
        (float*[]){a->q_a ? parts.query_latent : parts.q, parts.kv}
    );
    take_input(p);
    multiply_all(p);
    if (a->q_a) {
        use_matrices(p, a->q->inputs, 1, &a->q, &parts.q);
        run_rows(p, store_rows);
        multiply_all(p);
    } else {
        run_rows(p, store_rows);
    }
    run_rows(p, rotate_rows);
    while (next_part(p, &parts)) {
        run_phase(p, a->num_heads, absorb);
        parts.heads_at_once = heads_at_once(p, a, parts.num_groups);
        run_phase(p, parts.num_groups * ((a->num_heads + parts.heads_at_once - 1) / parts.heads_at_once), attend);
        run_phase(p, a->num_heads, expand);
    }
    add_output(p, a->output, a->output_bias, parts.attended);
}

const block_kind LATENT_ATTENTION = {.bind = bind, .measure = measure, .run = run};
