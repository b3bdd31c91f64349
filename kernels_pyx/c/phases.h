/* What blocks are made of: phases over rows or tiles, each shared out over the pool, and the scratch that they use.

   A block takes the residual stream x (take_input), computes, and adds its result to it (add_output). A further kind of block is a file of its
   own with a block_kind, its part in a union of stage_layer, and a class in stage_layers.pxi. */
#ifndef DAIRLLM_PHASES_H
#define DAIRLLM_PHASES_H

#include <pthread.h>

#include "integers.h"
#include "stage.h"

enum {
    ATTENTION_ROWS = 16,         /* rows of a slice that share a pass over keys and values */
    MAX_MATRICES = 4,
};

/* ---- scratch ---- */

/* Hands out parts of a memory, 64-byte aligned; with NULL for a base it only counts. */
typedef struct {
    uint8_t* base;
    size_t at;
} scratch_cursor;

void* take_scratch(scratch_cursor* cursor, size_t bytes);

/* The most that a block needs: of its own parts, and for the inputs of matrices that are multiplied together. */
typedef struct {
    size_t block_bytes, activation_bytes;
} scratch_need;

void need_block(scratch_need* need, size_t bytes);
void need_activations(scratch_need* need, int rows, int count, const packed_matrix* const* matrices);

typedef struct {
    int slice, first_row, first_position, num_rows;
} row_group;

typedef struct {
    float *x, *carried;           /* the rows */
    float *normed, *angles;       /* normed: also what a block gives, before it is added */
    uint8_t *activations, *block; /* block: the parts of the block that runs, as it divides them */
    float* scores;
    int *row_slice, *row_position;
    row_group* groups;
    size_t size_bytes;
} scratch_parts;

/* ---- stages ---- */

/* Layers with the same angles share a table: of all rows the cosines, [rows, dim / 2], then their sines. */
typedef struct {
    int dim;
    float magnitude;
    double* frequencies;
    size_t offset;               /* in scratch.angles, in numbers */
} angle_table;

struct stage {
    stage_spec spec;
    int max_rows, max_context;
    const packed_matrix* embedding;
    per_layer_embedding per_layer; /* width 0: none */
    stage_layer* layers;
    int first_layer, num_layers;
    angle_table* tables;
    int num_tables;
    norm_spec head_norm;
    const packed_matrix* head;
    pthread_mutex_t running;
    uint8_t* memory;
    size_t memory_bytes;
    int num_threads;             /* that the scratch is for */
    scratch_parts scratch;
};

/* Of a thread, in scratch.scores. */
size_t score_numbers(const stage* s);
/* Index of the table for these angles, which begins to point into it; -1 if there is no memory. While the stage is locked. */
int use_angles(stage* s, rope_spec* rope);

/* ---- a run ---- */

typedef struct {
    const packed_matrix* matrices[MAX_MATRICES];
    float* outputs[MAX_MATRICES];
    uint8_t* activations[MAX_MATRICES]; /* of equal block formats the same */
    int num_matrices;
} matrix_group;

typedef struct {
    stage* s;
    const kernel_table* kernels;
    const stage_batch* batch;
    const stage_layer* layer;
    const kv_cache* cache;        /* the layer's */
    int num_rows;                 /* of the current phase */
    const int32_t* rows;          /* its rows of x, NULL: all */
    norm_spec norm, post_norm;    /* of what goes into the block, and of what comes out of it */
    float residual_scale;         /* of what comes out of it */
    int boundary_encoding;        /* of the rows that a block takes, before it norms them */
    const float* bias;            /* or NULL */
    const float* source;          /* of activations */
    int source_width;
    matrix_group group;
    void* block;                  /* what the running block needs in its phases */
    int num_row_groups, attention_parts;
    int num_chunks;
    int has_failed;               /* what the block needs did not come into memory */
} phase;

struct block_kind {
    /* When the layer is added: 0, or -1 if there is no memory. */
    int (*bind)(stage* s, stage_layer* layer);
    void (*measure)(const stage_layer* layer, int rows, scratch_need* need);
    /* phase.norm, post_norm, residual_scale and boundary_encoding are those of the block. It may set has_failed. */
    void (*run)(phase* p);
};

static inline int chunk_begin(int total, int chunk, int num_chunks) { return (int)((int64_t)total * chunk / num_chunks); }

void run_phase(phase* p, int num_chunks, pool_function function);
/* Chunks of rows: [chunk_begin(num_rows, chunk, num_chunks), chunk_begin(num_rows, chunk + 1, num_chunks)) is for `function` to find. */
void run_rows(phase* p, pool_function function);

/* Matrices with one input of `width` numbers a row, from now on. */
void use_matrices(phase* p, int width, int count, const packed_matrix* const* matrices, float* const* outputs);
/* Row `row` of the group's input. */
void prepare_row(const phase* p, const float* x, int row);
/* The rows of `source` into the input of the group's matrices. */
void prepare_all(phase* p, const float* source);
/* The row's carried numbers from `offset` on. */
float* carried_row(const phase* p, int row, int offset);
/* Round what a row carries from now on. */
void round_carried(const phase* p, float* carried, int width);
/* A number of chunks for `tiles` tiles of each of the group's matrices. */
int matmul_chunks(const phase* p, int tiles);
void multiply(const phase* p, int m, int tile_begin, int tile_end);
/* All matrices of the group, without their biases. */
void multiply_all(phase* p);

/* The block's input: rows of x, rounded and normed, into scratch.normed and into the input of the group's matrices. */
void take_input(phase* p);
/* x += residual scale * post norm(matrix * source + bias); source [rows, matrix inputs]. */
void add_output(phase* p, const packed_matrix* matrix, const float* bias, const float* source);
/* x += residual scale * post norm(what is in scratch.normed). */
void add_normed(phase* p);

/* per_layer.c */
void measure_per_layer_input(const stage_layer* layer, int rows, scratch_need* need);
void run_per_layer_input(phase* p);
void measure_per_layer_embedding(const stage* s, scratch_need* need);
void run_per_layer_embedding(phase* p);

#endif
