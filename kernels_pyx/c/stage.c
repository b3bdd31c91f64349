#include "stage.h"

#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "deterministic_math.h"
#include "packing.h"
#include "phases.h"

void rope_frequencies(double theta, int rope_dim, const double* factors, double* out) {
    const double log_theta = dm_log(theta);
    for (int i = 0; i < rope_dim / 2; i++) {
        out[i] = dm_exp(-(2.0 * i / rope_dim) * log_theta) / (factors ? factors[i] : 1.0);
    }
}

/* ---- building ---- */

stage* stage_create(const stage_spec* spec, int max_rows, int max_context) {
    stage* s = calloc(1, sizeof *s);
    if (!s) {
        return NULL;
    }
    s->spec = *spec;
    s->layers = malloc((size_t)(spec->num_layers + 1) * sizeof *s->layers);
    if (!s->layers) {
        free(s);
        return NULL;
    }
    s->max_rows = max_rows;
    s->max_context = max_context;
    s->num_threads = pool_num_threads(pool_shared());
    pthread_mutex_init(&s->running, NULL);
    return s;
}

void stage_free(stage* s) {
    if (s) {
        pthread_mutex_destroy(&s->running);
        for (int i = 0; i < s->num_tables; i++) {
            free(s->tables[i].frequencies);
        }
        free(s->tables);
        free(s->memory);
        free(s->layers);
        free(s);
    }
}

void stage_set_embedding(stage* s, const packed_matrix* table, const per_layer_embedding* per_layer) {
    s->embedding = table;
    s->per_layer = per_layer ? *per_layer : (per_layer_embedding){0};
}

void stage_set_head(stage* s, const norm_spec* norm, const packed_matrix* output) {
    s->head_norm = *norm;
    s->head = output;
}

static int find_angles(const stage* s, const rope_spec* rope) {
    for (int i = 0; i < s->num_tables; i++) {
        const angle_table* table = &s->tables[i];
        const size_t bytes = (size_t)(rope->dim / 2) * sizeof(double);
        if (table->dim == rope->dim && table->magnitude == rope->magnitude && memcmp(table->frequencies, rope->frequencies, bytes) == 0) {
            return i;
        }
    }
    return -1;
}

static int add_angles(stage* s, const rope_spec* rope) {
    const size_t bytes = (size_t)(rope->dim / 2) * sizeof(double);
    angle_table* tables = realloc(s->tables, (size_t)(s->num_tables + 1) * sizeof *tables);
    s->tables = tables ? tables : s->tables;
    double* frequencies = tables ? malloc(bytes) : NULL;
    if (!frequencies) {
        return -1;
    }
    memcpy(frequencies, rope->frequencies, bytes);
    const angle_table* last = s->num_tables ? &tables[s->num_tables - 1] : NULL;
    const size_t offset = last ? last->offset + (size_t)s->max_rows * (size_t)last->dim : 0;
    tables[s->num_tables] = (angle_table){rope->dim, rope->magnitude, frequencies, offset};
    return s->num_tables++;
}

int use_angles(stage* s, rope_spec* rope) {
    const int found = find_angles(s, rope), table = found < 0 ? add_angles(s, rope) : found;
    rope->frequencies = table < 0 ? NULL : s->tables[table].frequencies;
    return table;
}

static int bind_block(stage* s, const block_kind* kind, stage_layer* layer) { return kind->bind ? kind->bind(s, layer) : 0; }

int stage_add_layer(stage* s, int index, const stage_layer* layer) {
    stage_layer bound = *layer;
    pthread_mutex_lock(&s->running);
    const int status = bind_block(s, layer->attention_kind, &bound) | bind_block(s, layer->feed_forward_kind, &bound);
    if (status == 0) {
        s->first_layer = s->num_layers ? s->first_layer : index;
        s->layers[index - s->first_layer] = bound;
        s->num_layers += index - s->first_layer == s->num_layers;
    }
    pthread_mutex_unlock(&s->running);
    return status;
}

/* ---- scratch ---- */

static scratch_need measure_units(const stage* s) {
    scratch_need need = {0};
    for (int i = 0; i < s->num_layers; i++) {
        s->layers[i].attention_kind->measure(&s->layers[i], s->max_rows, &need);
        s->layers[i].feed_forward_kind->measure(&s->layers[i], s->max_rows, &need);
        measure_per_layer_input(&s->layers[i], s->max_rows, &need);
    }
    measure_per_layer_embedding(s, &need);
    if (s->head) {
        need_activations(&need, s->max_rows, 1, &s->head);
    }
    return need;
}

static size_t angle_numbers(const stage* s) {
    const angle_table* last = s->num_tables ? &s->tables[s->num_tables - 1] : NULL;
    return last ? last->offset + (size_t)s->max_rows * (size_t)last->dim : 0;
}

size_t score_numbers(const stage* s) { return MAX_QUERIES_AT_ONCE * ((size_t)(s->max_context + 15) / 16 * 16); }

/* The parts of a scratch that begins at `base` (NULL: only its size is of use). */
static scratch_parts lay_out_scratch(const stage* s, uint8_t* base) {
    const size_t rows = (size_t)s->max_rows, number = sizeof(float), hidden_bytes = rows * (size_t)s->spec.hidden_size * number;
    const scratch_need need = measure_units(s);
    scratch_cursor cursor = {base, 0};
    scratch_parts parts;
    parts.x = take_scratch(&cursor, hidden_bytes);
    parts.carried = take_scratch(&cursor, rows * (size_t)s->spec.carried_width * number);
    parts.normed = take_scratch(&cursor, hidden_bytes);
    parts.angles = take_scratch(&cursor, angle_numbers(s) * number);
    parts.activations = take_scratch(&cursor, need.activation_bytes);
    parts.scores = take_scratch(&cursor, s->num_layers ? (size_t)s->num_threads * score_numbers(s) * number : 0);
    parts.row_slice = take_scratch(&cursor, rows * sizeof(int));
    parts.row_position = take_scratch(&cursor, rows * sizeof(int));
    parts.groups = take_scratch(&cursor, rows * sizeof(row_group));
    parts.block = take_scratch(&cursor, need.block_bytes);
    parts.size_bytes = cursor.at;
    return parts;
}

size_t stage_scratch_bytes(const stage* s) { return lay_out_scratch(s, NULL).size_bytes; }

/* Allocated at the first run, and again only if layers or threads were added since. */
static int reserve_scratch(stage* s) {
    s->num_threads = pool_num_threads(pool_shared());
    const size_t needed = stage_scratch_bytes(s);
    if (needed > s->memory_bytes) {
        free(s->memory);
        s->memory_bytes = 0;
        s->memory = aligned_alloc(64, needed);
        if (!s->memory) {
            return -1;
        }
        s->memory_bytes = needed;
    }
    s->scratch = lay_out_scratch(s, s->memory);
    return 0;
}

/* ---- one run ---- */

static void describe_rows(stage* s, const stage_batch* batch, phase* p) {
    int row = 0;
    p->num_row_groups = 0;
    for (int i = 0; i < batch->num_slices; i++) {
        const stage_slice* slice = &batch->slices[i];
        for (int r = 0; r < slice->num_rows; r += ATTENTION_ROWS) {
            const int count = min_int(ATTENTION_ROWS, slice->num_rows - r);
            s->scratch.groups[p->num_row_groups++] = (row_group){i, row + r, slice->first_position + r, count};
        }
        for (int r = 0; r < slice->num_rows; r++, row++) {
            s->scratch.row_slice[row] = i;
            s->scratch.row_position[row] = slice->first_position + r;
        }
    }
}

static void embed_rows(void* context, int chunk) {
    const phase* p = context;
    const stage_spec* spec = &p->s->spec;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float* x = p->s->scratch.x + (size_t)row * (size_t)spec->hidden_size;
        dequantize_row(p->s->embedding, p->batch->token_ids[row], x);
        p->kernels->scale_row(x, spec->embedding_scale, 0.0f, spec->hidden_size);
        memset(carried_row(p, row, 0), 0, (size_t)spec->carried_width * sizeof(float));
    }
}

static void find_angles_of_row(const stage* s, const angle_table* table, int row) {
    const size_t half = (size_t)table->dim / 2;
    float *cosines = s->scratch.angles + table->offset + (size_t)row * half, *sines = cosines + (size_t)s->max_rows * half;
    for (size_t i = 0; i < half; i++) {
        double sine, cosine;
        dm_sin_cos(s->scratch.row_position[row] * table->frequencies[i], &sine, &cosine);
        cosines[i] = (float)(cosine * (double)table->magnitude);
        sines[i] = (float)(sine * (double)table->magnitude);
    }
}

static void find_angles_of_rows(void* context, int chunk) {
    const phase* p = context;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        for (int i = 0; i < p->s->num_tables; i++) {
            find_angles_of_row(p->s, &p->s->tables[i], row);
        }
    }
}

/* Rows are rounded where a unit takes them up. Those of the first unit of a run come rounded. */
static int encoding_before(const phase* p, int unit) { return unit > p->batch->first_unit ? p->s->spec.boundary_encoding : ENCODING_F32; }

static void scale_rows(void* context, int chunk) {
    const phase* p = context;
    const int width = p->s->spec.hidden_size, end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        p->kernels->scale_row(p->s->scratch.x + (size_t)row * (size_t)width, p->layer->output_scale, 0.0f, width);
    }
}

static void run_layer(phase* p, int unit) {
    const stage_layer* layer = p->layer;
    p->norm = layer->attention_norm;
    p->post_norm = layer->attention_post_norm;
    p->residual_scale = layer->residual_scale;
    p->boundary_encoding = encoding_before(p, unit);
    layer->attention_kind->run(p);
    p->norm = layer->feed_forward_norm;
    p->post_norm = layer->feed_forward_post_norm;
    p->boundary_encoding = ENCODING_F32;
    layer->feed_forward_kind->run(p);
    if (p->has_failed) {
        return;
    }
    if (layer->input.width) {
        run_per_layer_input(p);
    }
    if (layer->output_scale != 1.0f) {
        run_rows(p, scale_rows);
    }
}

static void run_layers(phase* p, int first_unit, int end_unit) {
    stage* s = p->s;
    run_rows(p, find_angles_of_rows);
    for (int unit = first_unit; unit < end_unit && !p->has_failed; unit++) {
        const int local = unit - 1 - s->first_layer;
        p->layer = &s->layers[local];
        p->cache = p->batch->caches[local];
        run_layer(p, unit);
    }
}

static void scale_logits(void* context, int chunk) {
    const phase* p = context;
    const stage_spec* spec = &p->s->spec;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks), width = p->s->head->outputs;
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        p->kernels->scale_row(p->batch->out + (size_t)row * (size_t)width, spec->logit_scale, spec->logit_softcap, width);
    }
}

static void run_head(phase* p) {
    stage* s = p->s;
    p->rows = p->batch->logits_rows;
    p->num_rows = p->batch->num_logits_rows;
    if (p->num_rows == 0) {
        return;
    }
    p->norm = s->head_norm;
    p->boundary_encoding = encoding_before(p, s->spec.num_layers + 1);
    use_matrices(p, s->spec.hidden_size, 1, &s->head, (float*[]){p->batch->out});
    take_input(p);
    multiply_all(p);
    if (s->spec.logit_scale != 1.0f || s->spec.logit_softcap != 0.0f) {
        run_rows(p, scale_logits);
    }
}

static void take_rows(stage* s, const stage_batch* batch) {
    const size_t width = (size_t)s->spec.hidden_size, carried = (size_t)s->spec.carried_width;
    for (size_t row = 0; row < (size_t)batch->num_rows; row++) {
        memcpy(s->scratch.x + row * width, batch->hidden + row * (width + carried), width * sizeof(float));
        memcpy(s->scratch.carried + row * carried, batch->hidden + row * (width + carried) + width, carried * sizeof(float));
    }
}

static void give_rows(const stage* s, const stage_batch* batch) {
    const size_t width = (size_t)s->spec.hidden_size, carried = (size_t)s->spec.carried_width;
    for (size_t row = 0; row < (size_t)batch->num_rows; row++) {
        memcpy(batch->out + row * (width + carried), s->scratch.x + row * width, width * sizeof(float));
        memcpy(batch->out + row * (width + carried) + width, s->scratch.carried + row * carried, carried * sizeof(float));
    }
}

static void run_embedding(phase* p) {
    run_rows(p, embed_rows);
    if (p->s->per_layer.width) {
        run_per_layer_embedding(p);
    }
}

static int run_units(stage* s, const stage_batch* batch) {
    phase p = {.s = s, .kernels = active_kernels(), .batch = batch, .num_rows = batch->num_rows};
    const int head = s->spec.num_layers + 1, first_layer = batch->first_unit ? batch->first_unit : 1, end_layer = min_int(batch->end_unit, head);
    describe_rows(s, batch, &p);
    if (batch->first_unit == 0) {
        run_embedding(&p);
    } else {
        take_rows(s, batch);
    }
    if (first_layer < end_layer) {
        run_layers(&p, first_layer, end_layer);
    }
    if (p.has_failed) {
        return STAGE_LACKS_EXPERTS;
    }
    if (batch->end_unit > head) {
        run_head(&p);
    } else {
        give_rows(s, batch);
    }
    return 0;
}

int stage_run(stage* s, const stage_batch* batch) {
    pthread_mutex_lock(&s->running);
    int status = reserve_scratch(s);
    if (status == 0) {
        status = run_units(s, batch);
    }
    pthread_mutex_unlock(&s->running);
    return status;
}
