#include "matmul.h"

#include "integers.h"

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

int matmul_chunk_tiles(const packed_matrix* w, int num_threads) {
    const int by_bytes = 1 + (int)(CHUNK_BYTES / w->tile_bytes);
    const int by_threads = 1 + num_tiles(w) / (num_threads * CHUNKS_PER_THREAD);
    const int chunk = min_int(by_bytes, by_threads);
    return chunk < TILE_STEP ? chunk : chunk / TILE_STEP * TILE_STEP;
}

static void prepare_chunk(void* context, int chunk) {
    const matmul_job* job = context;
    const int begin = chunk * ROWS_PER_CHUNK;
    job->kernels->prepare_activations(job->w->format, job->x, job->ldx, begin, min_int(begin + ROWS_PER_CHUNK, job->rows), job->rows,
                                      job->w->inputs, job->act);
}

static void multiply_chunk(void* context, int chunk) {
    const matmul_job* job = context;
    const int begin = chunk * job->chunk_tiles;
    job->kernels->matmul_tiles(job->w, job->act, job->rows, job->y, job->ldy, begin,
                               min_int(begin + job->chunk_tiles, num_tiles(job->w)));
}

void matmul(pool_t* pool, const kernel_table* kernels, const packed_matrix* w, const float* x, size_t ldx, int rows, void* act, float* y,
            size_t ldy) {
    const int chunk_tiles = matmul_chunk_tiles(w, pool_num_threads(pool));
    matmul_job job = {kernels, w, x, ldx, rows, chunk_tiles, act, y, ldy};
    pool_run(pool, (rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, prepare_chunk, &job);
    pool_run(pool, (num_tiles(w) + chunk_tiles - 1) / chunk_tiles, multiply_chunk, &job);
}
