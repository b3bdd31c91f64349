#include "matmul.h"

enum {
    CHUNK_BYTES = 128 << 10, /* of weights: some microseconds for one row, and within the second-level cache for many */
    CHUNKS_PER_THREAD = 4,   /* at least, so that a thread that lost its core leaves its share to the others */
    TILE_STEP = 4,           /* kernels of one row like tiles by fours */
    ROWS_PER_CHUNK = 4,      /* of activations to prepare */
};

typedef struct {
    const kernel_table* kernels;
    const packed_matrix* w;
    const float* x;
    size_t ldx;
    int rows, chunk_tiles;
    void* act;
    float* y;
    size_t ldy;
} matmul_job;

static int smaller_of(int a, int b) { return a < b ? a : b; }

static int count_tiles(const packed_matrix* w) { return (w->outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS; }

int matmul_chunk_tiles(const packed_matrix* w, int num_threads) {
    const int by_bytes = 1 + (int)(CHUNK_BYTES / w->tile_bytes);
    const int by_threads = 1 + count_tiles(w) / (num_threads * CHUNKS_PER_THREAD);
    const int chunk = smaller_of(by_bytes, by_threads);
    return chunk < TILE_STEP ? chunk : chunk / TILE_STEP * TILE_STEP;
}

static void prepare_chunk(void* context, int chunk) {
    const matmul_job* job = context;
    const int begin = chunk * ROWS_PER_CHUNK;
    job->kernels->prepare_activations(job->w->format, job->x, job->ldx, begin, smaller_of(begin + ROWS_PER_CHUNK, job->rows), job->rows,
                                      job->w->inputs, job->act);
}

static void multiply_chunk(void* context, int chunk) {
    const matmul_job* job = context;
    const int begin = chunk * job->chunk_tiles;
    job->kernels->matmul_tiles(job->w, job->act, job->rows, job->y, job->ldy, begin,
                               smaller_of(begin + job->chunk_tiles, count_tiles(job->w)));
}

void matmul(pool_t* pool, const kernel_table* kernels, const packed_matrix* w, const float* x, size_t ldx, int rows, void* act, float* y,
            size_t ldy) {
    const int chunk_tiles = matmul_chunk_tiles(w, pool_num_threads(pool));
    matmul_job job = {kernels, w, x, ldx, rows, chunk_tiles, act, y, ldy};
    pool_run(pool, (rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, prepare_chunk, &job);
    pool_run(pool, (count_tiles(w) + chunk_tiles - 1) / chunk_tiles, multiply_chunk, &job);
}
