/* Causal attention over the KV cache, several queries at a time, over the lanes of the file that includes this.

   The arithmetic of one query (row, head) at position p, whatever is computed beside it:
     score[j] = sum over d, in order, of fma(query[d] * scale, key[j][d], sum)             positions j lie across lanes
     weight[j] = exp(score[j] - max), their sum in 16 partial sums (position j in partial j % 16) and the fixed tree
     out[d] = (sum over j = 0..p, in order, of fma(weight[j], value[j][d], sum)) * (1 / sum of weights)
   A block holds positions of one sequence in order, so neither chunks nor block size matter. The type of the cache's elements is a constant
   wherever it is passed on, so each type has its own copy of the loops. */
#include "attention.h"

/* Accumulators are queries x vectors: as many as the registers hold beside the operands. */
enum { MAX_QUERIES = FLOAT_ROWS / 2, MAX_VECTORS = 4 };

/* The 16 elements from element `index` on. */
LANES f32x16 load_elements(kv_type type, const uint8_t* base, size_t index) {
    const uint8_t* from = base + index * kv_element_bytes(type);
    return type == KV_F32 ? f32x16_load((const float*)from) : f32x16_from_f16((const uint16_t*)from);
}

LANES void score_groups(
    kv_type type, int num_queries, int num_vectors, const float* queries, const uint8_t* const* keys, int head_dim, float* scores, size_t ld
) {
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
    }
    for (int d = 0; d < head_dim; d++) {
        f32x16 key[MAX_VECTORS];
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            key[v] = load_elements(type, keys[v], (size_t)d * KEY_GROUP);
        }
        UNROLL_ROWS
        for (int q = 0; q < num_queries; q++) {
            const f32x16 query = f32x16_set1(queries[q * MAX_HEAD_DIM + d]);
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                sums[q][v] = f32x16_fma(query, key[v], sums[q][v]);
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            f32x16_store(scores + (size_t)q * ld + v * KEY_GROUP, sums[q][v]);
        }
    }
}

typedef struct {
    const attention_task* task;
    float queries[MAX_QUERIES * MAX_HEAD_DIM]; /* scaled */
    float* out[MAX_QUERIES];
    int num_positions[MAX_QUERIES];            /* ascending */
    float inverse_sum[MAX_QUERIES];
} query_batch;

LANES const uint8_t* head_of_position(const attention_task* task, int position) {
    return kv_cache_head(task->cache, task->block_table[position / task->cache->block_tokens], task->kv_head);
}

LANES const uint8_t* keys_of_group(kv_type type, const attention_task* task, int group) {
    const int position = group * KEY_GROUP, within = position % task->cache->block_tokens;
    return head_of_position(task, position) + (size_t)within * (size_t)task->cache->head_dim * kv_element_bytes(type);
}

LANES void score_batch(kv_type type, int num_queries, int max_vectors, const query_batch* batch) {
    const attention_task* task = batch->task;
    const int num_groups = (batch->num_positions[num_queries - 1] + KEY_GROUP - 1) / KEY_GROUP;
    for (int group = 0; group < num_groups;) {
        const int left = num_groups - group, num_vectors = left < max_vectors ? 1 : max_vectors;
        const uint8_t* keys[MAX_VECTORS];
        for (int v = 0; v < num_vectors; v++) {
            keys[v] = keys_of_group(type, task, group + v);
        }
        float* scores = task->scores + (size_t)group * KEY_GROUP;
        if (num_vectors == 1) {
            score_groups(type, num_queries, 1, batch->queries, keys, task->cache->head_dim, scores, task->ld_scores);
        } else {
            score_groups(type, num_queries, max_vectors, batch->queries, keys, task->cache->head_dim, scores, task->ld_scores);
        }
        group += num_vectors;
    }
}

/* scores[0..count) become exp(score - max), filled up to 16 with zeros; returns 1 / their sum. */
static float exponentiate_scores(float* scores, int count) {
    const int padded = (count + 15) / 16 * 16;
    for (int i = count; i < padded; i++) {
        scores[i] = -INFINITY;
    }
    f32x16 largest = f32x16_load(scores);
    for (int i = 16; i < padded; i += 16) {
        largest = f32x16_max(largest, f32x16_load(scores + i));
    }
    const f32x16 shift = f32x16_set1(f32x16_reduce_max(largest));
    f32x16 sum = f32x16_zero();
    for (int i = 0; i < padded; i += 16) {
        const f32x16 weight = f32x16_exp(f32x16_sub(f32x16_load(scores + i), shift));
        f32x16_store(scores + i, weight);
        sum = f32x16_add(sum, weight);
    }
    return 1.0f / f32x16_reduce_add(sum);
}

/* Dimensions [16 * first, 16 * (first + num_vectors)) of all queries. The positions that all queries see are shared; each query then goes on
   alone, since a position that it does not see may hold anything, NaN too. */
LANES void mix_values(kv_type type, int num_queries, int num_vectors, const query_batch* batch, int first) {
    const attention_task* task = batch->task;
    const int block_tokens = task->cache->block_tokens;
    const size_t stride = (size_t)task->cache->value_stride, offset = kv_cache_value_offset(task->cache) + (size_t)first * 16;
    const int shared = batch->num_positions[0];
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
    }
    for (int begin = 0; begin < shared; begin += block_tokens) {
        const uint8_t* head = head_of_position(task, begin);
        const int end = begin + block_tokens < shared ? begin + block_tokens : shared;
        size_t row = offset;
        for (int position = begin; position < end; position++, row += stride) {
            f32x16 value[MAX_VECTORS];
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                value[v] = load_elements(type, head, row + (size_t)v * 16);
            }
            UNROLL_ROWS
            for (int q = 0; q < num_queries; q++) {
                const f32x16 weight = f32x16_set1(task->scores[(size_t)q * task->ld_scores + (size_t)position]);
                UNROLL_ROWS
                for (int v = 0; v < num_vectors; v++) {
                    sums[q][v] = f32x16_fma(weight, value[v], sums[q][v]);
                }
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        for (int position = shared; position < batch->num_positions[q]; position++) {
            const uint8_t* head = head_of_position(task, position);
            const size_t row = offset + (size_t)(position % block_tokens) * stride;
            const f32x16 weight = f32x16_set1(task->scores[(size_t)q * task->ld_scores + (size_t)position]);
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                sums[q][v] = f32x16_fma(weight, load_elements(type, head, row + (size_t)v * 16), sums[q][v]);
            }
        }
        const f32x16 inverse = f32x16_set1(batch->inverse_sum[q]);
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            const int dimension = (first + v) * 16, rest = task->cache->head_dim - dimension;
            f32x16_store_partial(batch->out[q] + dimension, f32x16_mul(sums[q][v], inverse), rest < 16 ? rest : 16);
        }
    }
}

LANES void mix_batch(kv_type type, int num_queries, int max_vectors, const query_batch* batch) {
    const int num_vectors = batch->task->cache->value_stride / 16;
    int first = 0;
    for (; first + max_vectors <= num_vectors; first += max_vectors) {
        mix_values(type, num_queries, max_vectors, batch, first);
    }
    for (; first < num_vectors; first++) {
        mix_values(type, num_queries, 1, batch, first);
    }
}

LANES void attend_batch(kv_type type, int num_queries, query_batch* batch) {
    const int max_vectors = num_queries * MAX_VECTORS <= FLOAT_ROWS ? MAX_VECTORS : MAX_VECTORS / 2;
    score_batch(type, num_queries, max_vectors, batch);
    for (int q = 0; q < num_queries; q++) {
        batch->inverse_sum[q] = exponentiate_scores(batch->task->scores + (size_t)q * batch->task->ld_scores, batch->num_positions[q]);
    }
    mix_batch(type, num_queries, max_vectors, batch);
}

/* One copy of the code for each number of queries, so that its sums stay in registers. */
LANES void attend_any_batch(kv_type type, int num_queries, query_batch* batch) {
#define QUERIES_CASE(n)                                         \
    case n:                                                     \
        if (n <= MAX_QUERIES) {                                 \
            attend_batch(type, n < MAX_QUERIES ? n : MAX_QUERIES, batch); \
        }                                                       \
        break;
    switch (num_queries) {
        QUERIES_CASE(1)
        QUERIES_CASE(2)
        QUERIES_CASE(3)
        QUERIES_CASE(4)
        QUERIES_CASE(5)
        QUERIES_CASE(6)
        QUERIES_CASE(7)
        QUERIES_CASE(8)
    }
#undef QUERIES_CASE
}

static void attend_f16(int num_queries, query_batch* batch) { attend_any_batch(KV_F16, num_queries, batch); }

static void attend_f32(int num_queries, query_batch* batch) { attend_any_batch(KV_F32, num_queries, batch); }

static void attention(const attention_task* task) {
    query_batch batch = {.task = task};
    const int head_dim = task->cache->head_dim, num_queries = task->num_rows * task->num_heads;
    for (int begin = 0; begin < num_queries; begin += MAX_QUERIES) {
        const int count = num_queries - begin < MAX_QUERIES ? num_queries - begin : MAX_QUERIES;
        for (int q = 0; q < count; q++) {
            const int row = (begin + q) / task->num_heads, head = (begin + q) % task->num_heads;
            const size_t offset = (size_t)row * task->ld + (size_t)head * (size_t)head_dim;
            for (int d = 0; d < head_dim; d++) {
                batch.queries[q * MAX_HEAD_DIM + d] = task->queries[offset + (size_t)d] * task->scale;
            }
            batch.out[q] = task->out + offset;
            batch.num_positions[q] = task->first_position + row + 1;
        }
        if (task->cache->type == KV_F32) {
            attend_f32(count, &batch);
        } else {
            attend_f16(count, &batch);
        }
    }
}

/* Numbers for a cache of f16: magnitudes over what it holds saturate. */
LANES void convert_to_f16(const float* from, int n, uint16_t* to) {
    const f32x16 most = f32x16_set1(65504.0f), least = f32x16_set1(-65504.0f);
    f32x16_to_f16(to, f32x16_max(least, f32x16_min(most, f32x16_load_partial(from, n))));
}

/* Up to 16 keys go to every KEY_GROUP-th element from `key` on; as many values side by side, filled up to 16 with zeros. */
LANES void store_f16(uint16_t* head, size_t key, size_t value, const float* keys, const float* values, int n) {
    uint16_t converted[16];
    convert_to_f16(keys, n, converted);
    for (int i = 0; i < n; i++) {
        head[key + (size_t)i * KEY_GROUP] = converted[i];
    }
    convert_to_f16(values, n, head + value);
}

LANES void store_f32(float* head, size_t key, size_t value, const float* keys, const float* values, int n) {
    for (int i = 0; i < n; i++) {
        head[key + (size_t)i * KEY_GROUP] = keys[i];
    }
    f32x16_store(head + value, f32x16_load_partial(values, n));
}

/* One position's keys and values into the cache of their layer. */
static void store_position(const kv_cache* cache, int block, int within, const float* keys, const float* values) {
    const int head_dim = cache->head_dim;
    const size_t first_key = (size_t)(within / KEY_GROUP) * KEY_GROUP * (size_t)head_dim + (size_t)(within % KEY_GROUP);
    const size_t first_value = kv_cache_value_offset(cache) + (size_t)within * (size_t)cache->value_stride;
    for (int head = 0; head < cache->num_kv_heads; head++, keys += head_dim, values += head_dim) {
        uint8_t* memory = kv_cache_head(cache, block, head);
        for (int d = 0; d < head_dim; d += 16) {
            const int n = head_dim - d < 16 ? head_dim - d : 16;
            const size_t key = first_key + (size_t)d * KEY_GROUP, value = first_value + (size_t)d;
            if (cache->type == KV_F32) {
                store_f32((float*)memory, key, value, keys + d, values + d, n);
            } else {
                store_f16((uint16_t*)memory, key, value, keys + d, values + d, n);
            }
        }
    }
}
