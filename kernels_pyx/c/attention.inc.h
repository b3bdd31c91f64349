/* Causal attention over the KV cache, several queries at a time, over the lanes of the file that includes this.

   The arithmetic of one query (row, head) that sees the positions s to p, whatever is computed beside it:
     score[j] = sum over d, in order, of fma(query[d] * scale, key[j][d], sum)             positions j lie across lanes
     with a softcap, softcap * tanh(score[j] / softcap) instead
     weight[j] = exp(score[j] - max), their sum in 16 partial sums (position j in partial j % 16) and the fixed tree; a sink counts for the
     max, and exp(sink - max) is added to the sum
     out[d] = (sum over j = s..p, in order, of fma(weight[j], value[j][d], sum)) * (1 / sum of weights)
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
    kv_type type, int num_queries, int num_vectors, const float* queries, const uint8_t* const* keys, int key_dim, float* scores, size_t ld
) {
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
    }
    for (int d = 0; d < key_dim; d++) {
        f32x16 key[MAX_VECTORS];
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            key[v] = load_elements(type, keys[v], (size_t)d * KEY_GROUP);
        }
        UNROLL_ROWS
        for (int q = 0; q < num_queries; q++) {
            const f32x16 query = f32x16_set1(queries[d * num_queries + q]);
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
    float queries[MAX_HEAD_DIM * MAX_QUERIES]; /* scaled; [key_dim][queries] */
    float* out[MAX_QUERIES];
    const float* sinks[MAX_QUERIES];           /* or NULL */
    int begins[MAX_QUERIES], ends[MAX_QUERIES]; /* of the positions that each sees; both ascend */
    float inverse_sum[MAX_QUERIES];
} query_batch;

LANES const uint8_t* head_of_position(const attention_task* task, int position) {
    return kv_cache_head(task->cache, task->block_table[position / task->cache->block_tokens], task->kv_head);
}

LANES const uint8_t* keys_of_group(kv_type type, const attention_task* task, int group) {
    const int position = group * KEY_GROUP, within = position % task->cache->block_tokens;
    return head_of_position(task, position) + (size_t)within * (size_t)task->cache->key_dim * kv_element_bytes(type);
}

LANES void score_batch(kv_type type, int num_queries, int max_vectors, const query_batch* batch) {
    const attention_task* task = batch->task;
    const int num_groups = (batch->ends[num_queries - 1] + KEY_GROUP - 1) / KEY_GROUP;
    for (int group = batch->begins[0] / KEY_GROUP; group < num_groups;) {
        const int left = num_groups - group, num_vectors = left < max_vectors ? 1 : max_vectors;
        const uint8_t* keys[MAX_VECTORS];
        for (int v = 0; v < num_vectors; v++) {
            keys[v] = keys_of_group(type, task, group + v);
        }
        float* scores = task->scores + (size_t)group * KEY_GROUP;
        if (num_vectors == 1) {
            score_groups(type, num_queries, 1, batch->queries, keys, task->cache->key_dim, scores, task->ld_scores);
        } else {
            score_groups(type, num_queries, max_vectors, batch->queries, keys, task->cache->key_dim, scores, task->ld_scores);
        }
        group += num_vectors;
    }
}

static float exp_of(float x) { return f32x16_reduce_max(f32x16_exp(f32x16_set1(x))); }

/* scores[begin..end) become exp(score - max), filled up with zeros to whole groups; returns 1 / their sum. */
static float exponentiate_scores(const attention_task* task, float* scores, int begin, int end, const float* sink) {
    const int first = begin / 16 * 16, padded = (end + 15) / 16 * 16;
    for (int i = first; i < padded && task->softcap != 0.0f; i += 16) {
        f32x16_store(scores + i, f32x16_softcap(f32x16_load(scores + i), task->softcap));
    }
    for (int i = first; i < begin; i++) {
        scores[i] = -INFINITY;
    }
    for (int i = end; i < padded; i++) {
        scores[i] = -INFINITY;
    }
    f32x16 largest = f32x16_set1(sink ? *sink : -INFINITY);
    for (int i = first; i < padded; i += 16) {
        largest = f32x16_max(largest, f32x16_load(scores + i));
    }
    const float maximum = f32x16_reduce_max(largest);
    const f32x16 shift = f32x16_set1(maximum);
    f32x16 sum = f32x16_zero();
    for (int i = first; i < padded; i += 16) {
        const f32x16 weight = f32x16_exp(f32x16_sub(f32x16_load(scores + i), shift));
        f32x16_store(scores + i, weight);
        sum = f32x16_add(sum, weight);
    }
    return 1.0f / (f32x16_reduce_add(sum) + (sink ? exp_of(*sink - maximum) : 0.0f));
}

/* Positions [begin, end) of one query; `offset`: of the dimensions, in the values of a head. */
LANES void mix_alone(
    kv_type type, int num_vectors, const query_batch* batch, int query, int begin, int end, size_t offset, f32x16 sums[MAX_VECTORS]
) {
    const attention_task* task = batch->task;
    for (int position = begin; position < end; position++) {
        const uint8_t* head = head_of_position(task, position);
        const size_t row = offset + (size_t)(position % task->cache->block_tokens) * (size_t)task->cache->value_stride;
        const f32x16 weight = f32x16_set1(task->scores[(size_t)query * task->ld_scores + (size_t)position]);
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[v] = f32x16_fma(weight, load_elements(type, head, row + (size_t)v * 16), sums[v]);
        }
    }
}

/* Dimensions [16 * first, 16 * (first + num_vectors)) of all queries. The positions that all queries see are shared; each query has those
   before and behind them alone, since a position that it does not see may hold anything, NaN too. */
LANES void mix_values(kv_type type, int num_queries, int num_vectors, const query_batch* batch, int first) {
    const attention_task* task = batch->task;
    const int block_tokens = task->cache->block_tokens;
    const size_t stride = (size_t)task->cache->value_stride, offset = kv_cache_value_offset(task->cache) + (size_t)first * 16;
    const int first_shared = batch->begins[num_queries - 1];
    const int end_shared = batch->ends[0] > first_shared ? batch->ends[0] : first_shared;
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
        const int end = batch->ends[q] < first_shared ? batch->ends[q] : first_shared;
        mix_alone(type, num_vectors, batch, q, batch->begins[q], end, offset, sums[q]);
    }
    for (int begin = first_shared, end; begin < end_shared; begin = end) {
        const uint8_t* head = head_of_position(task, begin);
        const int within = begin % block_tokens, rest = end_shared - begin;
        size_t row = offset + (size_t)within * stride;
        end = begin + (rest < block_tokens - within ? rest : block_tokens - within);
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
        mix_alone(type, num_vectors, batch, q, end_shared, batch->ends[q], offset, sums[q]);
        const f32x16 inverse = f32x16_set1(batch->inverse_sum[q]);
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            const int dimension = (first + v) * 16, rest = task->cache->value_dim - dimension;
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

#include "latent.inc.h"

LANES void attend_batch(kv_type type, int num_queries, query_batch* batch) {
    const int max_vectors = num_queries * MAX_VECTORS <= FLOAT_ROWS ? MAX_VECTORS : MAX_VECTORS / 2;
    score_batch(type, num_queries, max_vectors, batch);
    for (int q = 0; q < num_queries; q++) {
        float* scores = batch->task->scores + (size_t)q * batch->task->ld_scores;
        batch->inverse_sum[q] = exponentiate_scores(batch->task, scores, batch->begins[q], batch->ends[q], batch->sinks[q]);
    }
    if (batch->task->kv_rank) {
        mix_latent_batch(type, num_queries, max_vectors, batch);
    } else {
        mix_batch(type, num_queries, max_vectors, batch);
    }
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

/* Query `q` of `count`. */
static void describe_query(query_batch* batch, int q, int count, int row, int head) {
    const attention_task* task = batch->task;
    const float* query = task->queries + (size_t)row * task->ld_queries + (size_t)head * task->query_stride;
    for (int d = 0; d < task->cache->key_dim; d++) {
        batch->queries[d * count + q] = query[d] * task->scale;
    }
    const int width = task->kv_rank ? task->kv_rank : task->cache->value_dim;
    batch->out[q] = task->out + (size_t)row * task->ld_out + (size_t)head * (size_t)width;
    batch->sinks[q] = task->sinks ? task->sinks + head : NULL;
    batch->ends[q] = task->first_position + row + 1;
    batch->begins[q] = task->window && task->window < batch->ends[q] ? batch->ends[q] - task->window : 0;
}

static void attention(const attention_task* task) {
    query_batch batch;
    batch.task = task;
    const int num_queries = task->num_rows * task->num_heads;
    for (int begin = 0; begin < num_queries; begin += MAX_QUERIES) {
        const int count = num_queries - begin < MAX_QUERIES ? num_queries - begin : MAX_QUERIES;
        for (int q = 0; q < count; q++) {
            describe_query(&batch, q, count, (begin + q) / task->num_heads, (begin + q) % task->num_heads);
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

/* Up to 16 keys go to every KEY_GROUP-th element from `index` on. */
LANES void store_keys(kv_type type, uint8_t* head, size_t index, const float* keys, int n) {
    uint16_t converted[16];
    if (type == KV_F16) {
        convert_to_f16(keys, n, converted);
    }
    for (int i = 0; i < n; i++, index += KEY_GROUP) {
        if (type == KV_F32) {
            ((float*)head)[index] = keys[i];
        } else {
            ((uint16_t*)head)[index] = converted[i];
        }
    }
}

/* Up to 16 values side by side, filled up to 16 with zeros. */
LANES void store_values(kv_type type, uint8_t* head, size_t index, const float* values, int n) {
    if (type == KV_F32) {
        f32x16_store((float*)head + index, f32x16_load_partial(values, n));
    } else {
        convert_to_f16(values, n, (uint16_t*)head + index);
    }
}

LANES void store_heads(kv_type type, const kv_cache* cache, int block, int within, const float* keys, const float* values) {
    const int key_dim = cache->key_dim, value_dim = cache->value_dim;
    const size_t first_key = (size_t)(within / KEY_GROUP) * KEY_GROUP * (size_t)key_dim + (size_t)(within % KEY_GROUP);
    const size_t first_value = kv_cache_value_offset(cache) + (size_t)within * (size_t)cache->value_stride;
    for (int head = 0; head < cache->num_kv_heads; head++, keys += key_dim, values += value_dim) {
        uint8_t* memory = kv_cache_head(cache, block, head);
        for (int d = 0; d < key_dim; d += 16) {
            store_keys(type, memory, first_key + (size_t)d * KEY_GROUP, keys + d, key_dim - d < 16 ? key_dim - d : 16);
        }
        for (int d = 0; d < value_dim; d += 16) {
            store_values(type, memory, first_value + (size_t)d, values + d, value_dim - d < 16 ? value_dim - d : 16);
        }
    }
}

/* One position's keys and values into the cache of their layer. */
static void store_position(const kv_cache* cache, int block, int within, const float* keys, const float* values) {
    if (cache->type == KV_F32) {
        store_heads(KV_F32, cache, block, within, keys, values);
    } else {
        store_heads(KV_F16, cache, block, within, keys, values);
    }
}
