#include "phases.h"

#include <string.h>

#include "packing.h"

enum {
    CHUNKS_PER_THREAD = 8,
    ROWS_PER_CHUNK = 4,          /* fewer rows are not worth waking a thread for */
    MACS_PER_CHUNK = 40000,      /* about 2 us of one row, with weights from memory */
};

/* ---- scratch ---- */

static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

void* take_scratch(scratch_cursor* cursor, size_t bytes) {
    void* begin = cursor->base + cursor->at;
    cursor->at += whole_lines(bytes);
    return begin;
}

void need_block(scratch_need* need, size_t bytes) { need->block_bytes = max_size(need->block_bytes, bytes); }

static int has_format(int count, const packed_matrix* const* matrices, int format) {
    for (int i = 0; i < count; i++) {
        if (matrices[i]->format == format) {
            return 1;
        }
    }
    return 0;
}

static size_t group_bytes(int rows, const packed_matrix* matrix) {
    return whole_lines(activation_bytes(matrix->format, rows, matrix->inputs));
}

void need_activations(scratch_need* need, int rows, int count, const packed_matrix* const* matrices) {
    size_t bytes = 0;
    for (int m = 0; m < count; m++) {
        bytes += has_format(m, matrices, matrices[m]->format) ? 0 : group_bytes(rows, matrices[m]);
    }
    need->activation_bytes = max_size(need->activation_bytes, bytes);
}

/* ---- chunks ---- */

void run_phase(phase* p, int num_chunks, pool_function function) {
    p->num_chunks = num_chunks;
    pool_run_limited(pool_shared(), num_chunks, p->s->num_threads, function, p);
}

void run_rows(phase* p, pool_function function) {
    const int most = CHUNKS_PER_THREAD * p->s->num_threads, wanted = p->num_rows / ROWS_PER_CHUNK;
    run_phase(p, wanted < 1 ? 1 : wanted < most ? wanted : most, function);
}

/* ---- matrices ---- */

void use_matrices(phase* p, int width, int count, const packed_matrix* const* matrices, float* const* outputs) {
    matrix_group* group = &p->group;
    uint8_t* next = p->s->scratch.activations;
    p->source_width = width;
    group->num_matrices = count;
    for (int m = 0; m < count; m++) {
        group->matrices[m] = matrices[m];
        group->outputs[m] = outputs[m];
        group->activations[m] = next;
        int same = 0;
        while (matrices[same]->format != matrices[m]->format) {
            same++;
        }
        if (same < m) {
            group->activations[m] = group->activations[same];
        } else {
            next += group_bytes(p->num_rows, matrices[m]);
        }
    }
}

void prepare_row(const phase* p, const float* x, int row) {
    const matrix_group* group = &p->group;
    const float* first = x - (size_t)row * (size_t)p->source_width;
    for (int m = 0; m < group->num_matrices; m++) {
        const int format = group->matrices[m]->format;
        if (!has_format(m, group->matrices, format)) {
            p->kernels->prepare_activations(
                format, first, (size_t)p->source_width, row, row + 1, p->num_rows, p->source_width, group->activations[m]
            );
        }
    }
}

int matmul_chunks(const phase* p, int tiles) {
    const double macs = (double)tiles * TILE_OUTPUTS * p->source_width * p->num_rows * p->group.num_matrices;
    const int most = CHUNKS_PER_THREAD * p->s->num_threads, limit = tiles < most ? tiles : most;
    const double wanted = macs / MACS_PER_CHUNK;
    return wanted < 1 ? 1 : wanted < limit ? (int)wanted : limit;
}

void multiply(const phase* p, int m, int tile_begin, int tile_end) {
    const packed_matrix* matrix = p->group.matrices[m];
    p->kernels->matmul_tiles(
        matrix, p->group.activations[m], p->num_rows, p->group.outputs[m], (size_t)matrix->outputs, tile_begin, tile_end
    );
}

/* The tiles of all matrices, one after the other. */
static void multiply_tiles(void* context, int chunk) {
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

void multiply_all(phase* p) { run_phase(p, matmul_chunks(p, num_tiles(p->group.matrices[0])), multiply_tiles); }

/* ---- the input of a block ---- */

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
        p->kernels->norm_row(&p->norm, x, width, normed);
        prepare_row(p, normed, i);
    }
}

void take_input(phase* p) { run_rows(p, norm_and_prepare_rows); }

/* ---- the output of a block ---- */

static void prepare_rows(void* context, int chunk) {
    const phase* p = context;
    const int end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        prepare_row(p, p->source + (size_t)row * (size_t)p->source_width, row);
    }
}

/* The columns of some tiles, in all rows. */
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
        p->kernels->add_scaled_row(p->s->scratch.x + offset, p->group.outputs[0] + offset, p->residual_scale, columns);
    }
}

static void norm_and_add_rows(void* context, int chunk) {
    const phase* p = context;
    const int width = p->s->spec.hidden_size, end = chunk_begin(p->num_rows, chunk + 1, p->num_chunks);
    for (int row = chunk_begin(p->num_rows, chunk, p->num_chunks); row < end; row++) {
        float* product = p->s->scratch.normed + (size_t)row * (size_t)width;
        if (p->bias) {
            p->kernels->add_row(product, p->bias, width);
        }
        p->kernels->norm_row(&p->post_norm, product, width, product);
        p->kernels->add_scaled_row(p->s->scratch.x + (size_t)row * (size_t)width, product, p->residual_scale, width);
    }
}

void prepare_all(phase* p, const float* source) {
    p->source = source;
    run_rows(p, prepare_rows);
}

float* carried_row(const phase* p, int row, int offset) {
    return p->s->scratch.carried + (size_t)row * (size_t)p->s->spec.carried_width + (size_t)offset;
}

void round_carried(const phase* p, float* carried, int width) {
    p->kernels->round_row(p->s->spec.boundary_encoding == ENCODING_F32 ? ENCODING_F32 : ENCODING_F16, carried, width);
}

void add_normed(phase* p) {
    p->bias = NULL;
    run_rows(p, norm_and_add_rows);
}

void add_output(phase* p, const packed_matrix* matrix, const float* bias, const float* source) {
    use_matrices(p, matrix->inputs, 1, &matrix, &p->s->scratch.normed);
    p->bias = bias;
    prepare_all(p, source);
    if (p->post_norm.kind == NORM_NONE) {
        run_phase(p, matmul_chunks(p, num_tiles(matrix)), multiply_and_add);
    } else {
        multiply_all(p);
        run_rows(p, norm_and_add_rows);
    }
}
