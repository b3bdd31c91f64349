#include "stage.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "deterministic_math.h"
#include "packing.h"

enum {
    ATTENTION_ROWS = 8,          /* rows of a slice that share a pass over keys and values */
    CHUNKS_PER_THREAD = 8,
    ROWS_PER_CHUNK = 4,          /* fewer rows are not worth waking a thread for */
    MACS_PER_CHUNK = 40000,      /* about 2 us of one row, with weights from memory */
    MAX_MATRICES = 3,
};

typedef struct {
    int slice, first_row, first_position, num_rows;
} row_group;

/* Parts of the scratch. Those of attention and those of the feed-forward are never alive at once and share memory, and so do `normed` and `projected`. */
typedef struct {
    float *x, *normed, *projected, *cosines, *sines;
    float *q, *k, *v, *attended;
    float *gate, *up;
    uint8_t* activations[MAX_MATRICES];
    float* scores;
    int *row_slice, *row_position;
    row_group* groups;
    size_t size_bytes;
} scratch_parts;

struct stage {
    stage_spec spec;
    double* frequencies;
    int max_rows, max_context;
    const packed_matrix* embedding;
    stage_layer* layers;
    int first_layer, num_layers;
    const float* head_norm;
    const packed_matrix* head;
    pthread_mutex_t running;
    uint8_t* memory;
    size_t memory_bytes;
    int num_threads; /* that the scratch is for */
    scratch_parts scratch;
};

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
    const size_t bytes = (size_t)(spec->rope_dim / 2) * sizeof(double);
    s->spec = *spec;
    s->frequencies = malloc(bytes + sizeof(double));
    s->layers = malloc((size_t)(spec->num_layers + 1) * sizeof *s->layers);
    if (!s->frequencies || !s->layers) {
        free(s->frequencies);
        free(s->layers);
        free(s);
        return NULL;
    }
    memcpy(s->frequencies, spec->rope_frequencies, bytes);
    s->spec.rope_frequencies = s->frequencies;
    s->max_rows = max_rows;
    s->max_context = max_context;
    s->num_threads = pool_num_threads(pool_shared());
    pthread_mutex_init(&s->running, NULL);
    return s;
}

void stage_free(stage* s) {
    if (s) {
        pthread_mutex_destroy(&s->running);
        free(s->memory);
        free(s->layers);
        free(s->frequencies);
        free(s);
    }
}

void stage_set_embedding(stage* s, const packed_matrix* table) { s->embedding = table; }

void stage_set_head(stage* s, const float* norm, const packed_matrix* output) {
    s->head_norm = norm;
    s->head = output;
}

void stage_add_layer(stage* s, int index, const stage_layer* layer) {
    pthread_mutex_lock(&s->running);
    if (s->num_layers == 0) {
        s->first_layer = index;
    }
    const int local = index - s->first_layer;
    s->layers[local] = *layer;
    if (local == s->num_layers) {
        s->num_layers++;
    }
    pthread_mutex_unlock(&s->running);
}

/* ---- scratch ---- */

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t take(size_t* offset, size_t bytes) {
    const size_t begin = *offset;
    *offset += (bytes + 63) / 64 * 64;
    return begin;
}

static size_t activation_slot_bytes(const stage* s) {
    size_t most = s->head ? activation_bytes(s->head->format, s->max_rows, s->head->inputs) : 0;
    for (int i = 0; i < s->num_layers; i++) {
        const stage_layer* layer = &s->layers[i];
        const packed_matrix* matrices[] = {layer->q, layer->k, layer->v, layer->attention_output, layer->gate, layer->up, layer->down};
        for (size_t m = 0; m < sizeof matrices / sizeof *matrices; m++) {
            most = larger(most, activation_bytes(matrices[m]->format, s->max_rows, matrices[m]->inputs));
        }
    }
    return most;
}

/* How many activation buffers are alive at once: one per block format among matrices that share their input. */
static int num_activation_slots(const stage* s) {
    int most = 1;
    for (int i = 0; i < s->num_layers; i++) {
        const stage_layer* layer = &s->layers[i];
        const int q = layer->q->format, k = layer->k->format, v = layer->v->format;
        const int attention = 1 + (k != q) + (v != q && v != k), ffn = 1 + (layer->gate->format != layer->up->format);
        most = attention > most ? attention : most;
        most = ffn > most ? ffn : most;
    }
    return most;
}

/* The parts of a scratch that begins at `base` (NULL: only its size is of use). */
static scratch_parts lay_out_scratch(const stage* s, uint8_t* base) {
    const stage_spec* spec = &s->spec;
    const size_t rows = (size_t)s->max_rows, number = sizeof(float);
    const size_t q_bytes = rows * (size_t)(spec->num_heads * spec->head_dim) * number;
    const size_t k_bytes = rows * (size_t)(spec->num_kv_heads * spec->head_dim) * number;
    const size_t hidden_bytes = rows * (size_t)spec->hidden_size * number;
    const size_t intermediate_bytes = rows * (size_t)spec->intermediate_size * number;
    const size_t angle_bytes = s->num_layers ? rows * (size_t)(spec->rope_dim / 2) * number : 0;
    const size_t ld_scores = (size_t)(s->max_context + 15) / 16 * 16;
    const size_t slot_bytes = activation_slot_bytes(s);
    size_t at = 0;
    scratch_parts parts;
#define PART(name, bytes) parts.name = (void*)(base + take(&at, (bytes)))
    PART(x, hidden_bytes);
    PART(normed, hidden_bytes);
    parts.projected = parts.normed;
    PART(cosines, angle_bytes);
    PART(sines, angle_bytes);
    for (int i = 0; i < MAX_MATRICES; i++) {
        PART(activations[i], i < num_activation_slots(s) ? slot_bytes : 0);
    }
    PART(scores, s->num_layers ? (size_t)s->num_threads * MAX_QUERIES_AT_ONCE * ld_scores * number : 0);
    PART(row_slice, rows * sizeof(int));
    PART(row_position, rows * sizeof(int));
    PART(groups, rows * sizeof(row_group));
    size_t end = at;
    if (s->num_layers) {
        const size_t shared = at;
        PART(q, q_bytes);
        PART(k, k_bytes);
        PART(v, k_bytes);
        PART(attended, q_bytes);
        end = at;
        at = shared;
        PART(gate, intermediate_bytes);
        PART(up, intermediate_bytes);
    }
#undef PART
    parts.size_bytes = larger(end, at);
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

/* ---- phases: each is one pool_run ---- */

typedef struct {
    const packed_matrix* matrices[MAX_MATRICES];
    float* outputs[MAX_MATRICES];
    int num_matrices;
    /* block formats among them; activations of formats[i] are in scratch.activations[i] */
    int formats[MAX_MATRICES];
    int num_formats;
} matrix_group;

typedef struct {
    stage* s;
    const kernel_table* kernels;
    const stage_batch* batch;
    const stage_layer* layer;
    const kv_cache* cache;        /* the layer's */
    int num_rows;                 /* of the current phase */
    const int32_t* rows;          /* its rows of x, NULL: all */
    const float* norm;            /* its weights */
    int boundary_encoding;        /* of the rows that are normed, before they are */
    const float* bias;            /* or NULL */
    const float* source;          /* of activations */
    int source_width;
    matrix_group group;
    int num_row_groups, attention_parts;
    int num_chunks;
} phase;

static int chunk_begin(int total, int chunk, int num_chunks) { return (int)((int64_t)total * chunk / num_chunks); }

static void run_phase(phase* p, int num_chunks, pool_function function) {
    p->num_chunks = num_chunks;
    pool_run_limited(pool_shared(), num_chunks, p->s->num_threads, function, p);
}

static void run_rows(phase* p, pool_function function) {
    const int most = CHUNKS_PER_THREAD * p->s->num_threads, wanted = p->num_rows / ROWS_PER_CHUNK;
    run_phase(p, wanted < 1 ? 1 : wanted < most ? wanted : most, function);
}

static void use_matrices(phase* p, int count, const packed_matrix* const* matrices, float* const* outputs) {
    matrix_group* group = &p->group;
    group->num_matrices = count;
    group->num_formats = 0;
    for (int m = 0; m < count; m++) {
        group->matrices[m] = matrices[m];
        group->outputs[m] = outputs[m];
        int i = 0;
        while (i < group->num_formats && group->formats[i] != matrices[m]->format) {
            i++;
        }
        group->formats[i] = matrices[m]->format;
        if (i == group->num_formats) {
            group->num_formats++;
        }
    }
}

static const void* activations_of(const phase* p, const packed_matrix* matrix) {
    int i = 0;
    while (p->group.formats[i] != matrix->format) {
        i++;
    }
    return p->s->scratch.activations[i];
}

static int num_tiles(const packed_matrix* matrix) { return (matrix->outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS; }

static void prepare_row(const phase* p, const float* x, int row) {
    for (int i = 0; i < p->group.num_formats; i++) {
        const float* first = x - (size_t)row * (size_t)p->source_width;
        p->kernels->prepare_activations(
            p->group.formats[i], first, (size_t)p->source_width, row, row + 1, p->num_rows, p->source_width, p->s->scratch.activations[i]
        );
    }
}

static void embed_rows(void* context, int chunk) {
    const phase* p = context;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        dequantize_row(p->s->embedding, p->batch->token_ids[row], p->s->scratch.x + (size_t)row * (size_t)p->s->spec.hidden_size);
    }
}

static void find_angles(void* context, int chunk) {
    const phase* p = context;
    const int half = p->s->spec.rope_dim / 2, end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        for (int i = 0; i < half; i++) {
            double sine, cosine;
            dm_sin_cos(p->s->scratch.row_position[row] * p->s->frequencies[i], &sine, &cosine);
            p->s->scratch.cosines[(size_t)row * (size_t)half + (size_t)i] = (float)cosine;
            p->s->scratch.sines[(size_t)row * (size_t)half + (size_t)i] = (float)sine;
        }
    }
}

static void norm_and_prepare_rows(void* context, int chunk) {
    const phase* p = context;
    const int width = p->s->spec.hidden_size, end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int i = chunk_begin(p->num_rows, chunk, p->num_chunks); i < end; i++) {
        const int row = p->rows ? p->rows[i] : i;
        float* x = p->s->scratch.x + (size_t)row * (size_t)width;
        float* normed = p->s->scratch.normed + (size_t)i * (size_t)width;
        if (p->rows) { /* the same row may be wanted twice: it stays as it is */
            memcpy(normed, x, (size_t)width * sizeof *x);
            x = normed;
        }
        p->kernels->round_row(p->boundary_encoding, x, width);
        p->kernels->rms_norm_row(x, p->norm, width, p->s->spec.rms_norm_eps, normed);
        prepare_row(p, normed, i);
    }
}

static void prepare_rows(void* context, int chunk) {
    const phase* p = context;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        prepare_row(p, p->source + (size_t)row * (size_t)p->source_width, row);
    }
}

static int matmul_chunks(const phase* p, int tiles) {
    const double macs = (double)tiles * TILE_OUTPUTS * p->source_width * p->num_rows * p->group.num_matrices;
    const int most = CHUNKS_PER_THREAD * p->s->num_threads, limit = tiles < most ? tiles : most;
    const double wanted = macs / MACS_PER_CHUNK;
    return wanted < 1 ? 1 : wanted < limit ? (int)wanted : limit;
}

static void multiply(const phase* p, int m, int tile_begin, int tile_end) {
    const packed_matrix* matrix = p->group.matrices[m];
    p->kernels->matmul_tiles(
        matrix, activations_of(p, matrix), p->num_rows, p->group.outputs[m], (size_t)matrix->outputs, tile_begin, tile_end
    );
}

/* The tiles of all matrices, one after the other. */
static void multiply_all(void* context, int chunk) {
    const phase* p = context;
    int total = 0;
    for (int m = 0; m < p->group.num_matrices; m++) {
        total += num_tiles(p->group.matrices[m]);
    }
    int begin = chunk_begin(total, chunk, p->num_chunks), end = chunk_begin(total, chunk + 1, p->num_chunks);
    for (int m = 0; m < p->group.num_matrices && end > 0; m++) {
        const int tiles = num_tiles(p->group.matrices[m]), last = end < tiles ? end : tiles;
        if (begin < last) {
            multiply(p, m, begin, last);
        }
        begin = begin < tiles ? 0 : begin - tiles;
        end -= tiles;
    }
}

static int min_int(int a, int b) { return a < b ? a : b; }

/* x += matrix * activations (+ bias) for the columns of some tiles. */
static void multiply_and_add(void* context, int chunk) {
    const phase* p = context;
    const packed_matrix* matrix = p->group.matrices[0];
    const int tiles = num_tiles(matrix), begin = chunk_begin(tiles, chunk, p->num_chunks), end = chunk_begin(tiles, chunk + 1, p->num_chunks);
    const int first = begin * TILE_OUTPUTS, columns = min_int(end * TILE_OUTPUTS, matrix->outputs) - first;
    multiply(p, 0, begin, end);
    for (int row = 0; row < p->num_rows; row++) {
        const size_t offset = (size_t)row * (size_t)matrix->outputs + (size_t)first;
        if (p->bias) {
            p->kernels->add_row(p->group.outputs[0] + offset, p->bias + first, columns);
        }
        p->kernels->add_row(p->s->scratch.x + offset, p->group.outputs[0] + offset, columns);
    }
}

static void gate_and_up(void* context, int chunk) {
    const phase* p = context;
    const packed_matrix* matrix = p->group.matrices[0];
    const int tiles = num_tiles(matrix), begin = chunk_begin(tiles, chunk, p->num_chunks), end = chunk_begin(tiles, chunk + 1, p->num_chunks);
    const int first = begin * TILE_OUTPUTS, columns = min_int(end * TILE_OUTPUTS, matrix->outputs) - first;
    multiply(p, 0, begin, end);
    multiply(p, 1, begin, end);
    for (int row = 0; row < p->num_rows; row++) {
        const size_t offset = (size_t)row * (size_t)matrix->outputs + (size_t)first;
        p->kernels->swiglu_row(p->group.outputs[0] + offset, p->group.outputs[1] + offset, columns);
    }
}

static void rotate_and_store_rows(void* context, int chunk) {
    const phase* p = context;
    const stage_spec* spec = &p->s->spec;
    const scratch_parts* scratch = &p->s->scratch;
    const int q_width = spec->num_heads * spec->head_dim, k_width = spec->num_kv_heads * spec->head_dim, half = spec->rope_dim / 2;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks), block_tokens = p->cache->block_tokens;
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float *q = scratch->q + (size_t)row * (size_t)q_width, *k = scratch->k + (size_t)row * (size_t)k_width;
        float* v = scratch->v + (size_t)row * (size_t)k_width;
        const float *cosines = scratch->cosines + (size_t)row * (size_t)half, *sines = scratch->sines + (size_t)row * (size_t)half;
        if (p->layer->q_bias) p->kernels->add_row(q, p->layer->q_bias, q_width);
        if (p->layer->k_bias) p->kernels->add_row(k, p->layer->k_bias, k_width);
        if (p->layer->v_bias) p->kernels->add_row(v, p->layer->v_bias, k_width);
        p->kernels->rope_row(q, spec->num_heads, spec->head_dim, spec->rope_dim, spec->rope_interleaved, cosines, sines);
        p->kernels->rope_row(k, spec->num_kv_heads, spec->head_dim, spec->rope_dim, spec->rope_interleaved, cosines, sines);
        const int position = scratch->row_position[row];
        const int block = p->batch->slices[scratch->row_slice[row]].block_table[position / block_tokens];
        p->kernels->store_position(p->cache, block, position % block_tokens, k, v);
    }
}

/* Item = (group of rows, part of the heads); the last groups see the most positions and come first, so that no long item is left for the end. */
static void attend(void* context, int chunk) {
    const phase* p = context;
    const stage_spec* spec = &p->s->spec;
    const row_group* group = &p->s->scratch.groups[p->num_row_groups - 1 - chunk / p->attention_parts];
    const int part = chunk % p->attention_parts, heads_per_part = spec->num_heads / p->attention_parts;
    const int head = part * heads_per_part, width = spec->num_heads * spec->head_dim;
    const size_t offset = (size_t)group->first_row * (size_t)width + (size_t)head * (size_t)spec->head_dim;
    const size_t ld_scores = (size_t)(p->s->max_context + 15) / 16 * 16;
    const attention_task task = {
        .cache = p->cache,
        .block_table = p->batch->slices[group->slice].block_table,
        .kv_head = head / (spec->num_heads / spec->num_kv_heads),
        .num_rows = group->num_rows,
        .num_heads = heads_per_part,
        .first_position = group->first_position,
        .scale = spec->attention_scale,
        .queries = p->s->scratch.q + offset,
        .out = p->s->scratch.attended + offset,
        .ld = (size_t)width,
        .scores = p->s->scratch.scores + (size_t)pool_thread_index() * MAX_QUERIES_AT_ONCE * ld_scores,
        .ld_scores = ld_scores,
    };
    p->kernels->attention(&task);
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
    /* Heads that share keys go together unless that leaves too little to share out. */
    const int items = p->num_row_groups * s->spec.num_kv_heads;
    p->attention_parts = s->num_threads > 1 && items < 4 * s->num_threads ? s->spec.num_heads : s->spec.num_kv_heads;
}

/* Rows are rounded where a unit takes them up. Those of the first unit of a run come rounded. */
static int encoding_before(const phase* p, int unit) { return unit > p->batch->first_unit ? p->s->spec.boundary_encoding : ENCODING_F32; }

static void run_attention(phase* p, int unit) {
    const stage_layer* layer = p->layer;
    const scratch_parts* scratch = &p->s->scratch;
    use_matrices(p, 3, (const packed_matrix*[]){layer->q, layer->k, layer->v}, (float*[]){scratch->q, scratch->k, scratch->v});
    p->norm = layer->attention_norm;
    p->boundary_encoding = encoding_before(p, unit);
    p->source_width = p->s->spec.hidden_size;
    run_rows(p, norm_and_prepare_rows);
    run_phase(p, matmul_chunks(p, num_tiles(layer->q)), multiply_all);
    run_rows(p, rotate_and_store_rows);
    run_phase(p, p->num_row_groups * p->attention_parts, attend);
    use_matrices(p, 1, &layer->attention_output, &scratch->projected);
    p->source = scratch->attended;
    p->source_width = layer->attention_output->inputs;
    run_rows(p, prepare_rows);
    p->bias = layer->attention_output_bias;
    run_phase(p, matmul_chunks(p, num_tiles(layer->attention_output)), multiply_and_add);
}

static void run_feed_forward(phase* p) {
    const stage_layer* layer = p->layer;
    const scratch_parts* scratch = &p->s->scratch;
    use_matrices(p, 2, (const packed_matrix*[]){layer->gate, layer->up}, (float*[]){scratch->gate, scratch->up});
    p->norm = layer->ffn_norm;
    p->boundary_encoding = ENCODING_F32;
    p->source_width = p->s->spec.hidden_size;
    run_rows(p, norm_and_prepare_rows);
    run_phase(p, matmul_chunks(p, num_tiles(layer->gate)), gate_and_up);
    use_matrices(p, 1, &layer->down, &scratch->projected);
    p->source = scratch->gate;
    p->source_width = p->s->spec.intermediate_size;
    run_rows(p, prepare_rows);
    p->bias = NULL;
    run_phase(p, matmul_chunks(p, num_tiles(layer->down)), multiply_and_add);
}

static void run_layers(phase* p, int first_unit, int end_unit) {
    stage* s = p->s;
    run_rows(p, find_angles);
    for (int unit = first_unit; unit < end_unit; unit++) {
        const int local = unit - 1 - s->first_layer;
        p->layer = &s->layers[local];
        p->cache = p->batch->caches[local];
        run_attention(p, unit);
        run_feed_forward(p);
    }
}

static void run_head(phase* p) {
    stage* s = p->s;
    p->rows = p->batch->logits_rows;
    p->num_rows = p->batch->num_logits_rows;
    if (p->num_rows == 0) {
        return;
    }
    use_matrices(p, 1, &s->head, (float*[]){p->batch->out});
    p->norm = s->head_norm;
    p->boundary_encoding = encoding_before(p, s->spec.num_layers + 1);
    p->source_width = s->spec.hidden_size;
    run_rows(p, norm_and_prepare_rows);
    run_phase(p, matmul_chunks(p, num_tiles(s->head)), multiply_all);
}

static void run_units(stage* s, const stage_batch* batch) {
    phase p = {.s = s, .kernels = active_kernels(), .batch = batch, .num_rows = batch->num_rows};
    const size_t bytes = (size_t)batch->num_rows * (size_t)s->spec.hidden_size * sizeof(float);
    const int head = s->spec.num_layers + 1, first_layer = batch->first_unit ? batch->first_unit : 1, end_layer = min_int(batch->end_unit, head);
    describe_rows(s, batch, &p);
    if (batch->first_unit == 0) {
        run_rows(&p, embed_rows);
    } else {
        memcpy(s->scratch.x, batch->hidden, bytes);
    }
    if (first_layer < end_layer) {
        run_layers(&p, first_layer, end_layer);
    }
    if (batch->end_unit > head) {
        run_head(&p);
    } else {
        memcpy(batch->out, s->scratch.x, bytes);
    }
}

int stage_run(stage* s, const stage_batch* batch) {
    pthread_mutex_lock(&s->running);
    const int status = reserve_scratch(s);
    if (status == 0) {
        run_units(s, batch);
    }
    pthread_mutex_unlock(&s->running);
    return status;
}
