/* What one call of attention() computes: rows of one sequence times query heads that share one KV head. */
#ifndef DAIRLLM_ATTENTION_H
#define DAIRLLM_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "kv_cache.h"

enum { MAX_HEAD_DIM = 1024, MAX_QUERIES_AT_ONCE = 24 };

typedef struct attention_task {
    const kv_cache* cache;
    const int32_t* block_table;
    int kv_head;
    int num_rows, num_heads, first_position; /* row r is at first_position + r and sees positions up to its own */
    int window;           /* so many of them, 0: all */
    int kv_rank;          /* so many numbers of a key are its value; 0: values lie beside the keys. Not with a window */
    float scale, softcap; /* softcap 0: none */
    const float* sinks;   /* of each head, or NULL */
    const float* queries; /* of (row, head) at row * ld_queries + head * query_stride */
    float* out;           /* of (row, head) at row * ld_out + head * value_dim (or kv_rank) */
    size_t query_stride, ld_queries, ld_out;
    float* scores;        /* scratch: MAX_QUERIES_AT_ONCE times the positions, rounded up to 16 */
} attention_task;

#endif
