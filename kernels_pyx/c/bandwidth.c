#define _GNU_SOURCE
#include "bandwidth.h"

#include "pool.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define CHUNK_BYTES ((size_t)1 << 20)
#define WORDS 16   /* two cache lines a round, in sums that do not wait for each other */

typedef struct {
    uint8_t* buffer;
    uint64_t sums[POOL_MAX_THREADS][8];   /* a cache line per thread; stored, so that the reads are not optimised away */
} reading;

static void fill_chunk(void* context, int chunk) {
    memset(((reading*)context)->buffer + CHUNK_BYTES * (size_t)chunk, chunk + 1, CHUNK_BYTES);
}

static void read_chunk(void* context, int chunk) {
    reading* r = context;
    const uint64_t* words = (const uint64_t*)(r->buffer + CHUNK_BYTES * (size_t)chunk);
    uint64_t partial[WORDS] = {0}, sum = 0;
    for (size_t i = 0; i < CHUNK_BYTES / sizeof(uint64_t); i += WORDS)
        for (int j = 0; j < WORDS; j++) partial[j] += words[i + (size_t)j];
    for (int j = 0; j < WORDS; j++) sum += partial[j];
    *(volatile uint64_t*)&r->sums[pool_thread_index()][0] = sum;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int memory_read_seconds(size_t size_bytes, int num_passes, double* seconds) {
    reading r;
    int num_chunks = (int)(size_bytes / CHUNK_BYTES);
    void* memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return -1;
#ifdef MADV_HUGEPAGE
    madvise(memory, size_bytes, MADV_HUGEPAGE);   /* as the weights are */
#endif
    r.buffer = memory;
    pool_run(pool_shared(), num_chunks, fill_chunk, &r);
    pool_run(pool_shared(), num_chunks, read_chunk, &r);
    for (int pass = 0; pass < num_passes; pass++) {
        double began_s = now_s();
        pool_run(pool_shared(), num_chunks, read_chunk, &r);
        seconds[pass] = now_s() - began_s;
    }
    munmap(memory, size_bytes);
    return 0;
}
