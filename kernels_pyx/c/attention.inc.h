/* Causal attention over the KV cache, several queries at a time, over the lanes of the file that includes this.

   The arithmetic of one query (row, head) that sees the positions s to p, whatever is computed beside it:
     score[j] = sum over d, in order, of fma(query[d] * scale, key[j][d], sum)             positions j lie across lanes
     with a softcap, softcap * tanh(score[j] / softcap) instead
     weight[j] = exp(score[j] - max), their sum in 16 partial sums (position j in partial j % 16) and the fixed tree; a sink counts for the
     max, and exp(sink - max) is added to the sum
     out[d] = (sum over j = s..p, in order, of fma(weight[j], value[j][d], sum)) * (1 / sum of weights)
   A block of the cache holds positions of one sequence in order, so neither chunks nor block size matter.

   Queries that share a KV head go through the cache as a tile, in two passes: scores of all positions, then weights and outputs, a block of
   positions at a time. Queries of a tile form parts, whose sums lie in registers; if there are several, a block is converted to float32 once for
   all of them, into memory that the nearest cache holds. Quantised numbers, scale * int8, are always converted. The number of queries of a part and the type of a block's numbers are constants
   wherever they are passed on, so each has its own copy of the loops. */
#include "attention.h"

enum {
    MAX_QUERIES = FLOAT_ROWS < 8 ? FLOAT_ROWS : 8, /* of a part, whose sums lie in registers */
    MAX_VECTORS = 4,                               /* of sums of each */
    BLOCK_GROUPS = 16,                             /* of positions that are looked at together, at most */
    BLOCK_NUMBERS = 4096,                          /* that several parts look at: as much as the nearest cache holds, or one group */
    VALUE_NUMBERS = 64,                            /* of each position in such a block */
};

/* Queries that go through keys and values together. */
typedef struct {
    const attention_task* task;
    int num_queries;
    int first_group, end_group;                 /* of the positions that any of them sees */
    int begins[MAX_QUERIES_AT_ONCE], ends[MAX_QUERIES_AT_ONCE]; /* of those that each sees; both ascend */
    float* out[MAX_QUERIES_AT_ONCE];
    const float* sinks[MAX_QUERIES_AT_ONCE];    /* or NULL */
    f32x16 largest[MAX_QUERIES_AT_ONCE];        /* of the scores so far, by position mod 16 */
    float maxima[MAX_QUERIES_AT_ONCE];
    f32x16 sums[MAX_QUERIES_AT_ONCE];           /* of the weights so far */
    float queries[MAX_QUERIES_AT_ONCE * MAX_HEAD_DIM]; /* scaled; part after part, [key_dim][queries] */
    float numbers[KEY_GROUP * MAX_HEAD_DIM];    /* of the cache as float32 */
} query_tile;

/* Numbers [first, first + count) of keys, [count][16] of each group of positions, or of values, [16][stride]. They lie in the cache, or in
   tile->numbers. */
typedef struct {
    kv_type type;
    int group, num_groups, first, count;
    size_t stride;
    const uint8_t* groups[BLOCK_GROUPS];
    const uint8_t* next[BLOCK_GROUPS];          /* the groups of the next block in the cache, to be fetched meanwhile */
} number_block;

static int within(int position, int begin, int end) { return position < begin ? begin : position < end ? position : end; }

static int groups_to(int position) { return (position + KEY_GROUP - 1) / KEY_GROUP; }

/* ---- from the cache ---- */

/* The 16 elements from element `index` on. */
LANES f32x16 load_elements(kv_type type, const uint8_t* base, size_t index) {
    const uint8_t* from = base + index * kv_element_bytes(type);
    return type == KV_F32 ? f32x16_load((const float*)from) : f32x16_from_f16((const uint16_t*)from);
}

/* Then a block's numbers are looked at as they lie in the cache, else as float32 in tile->numbers. */
static int is_in_place(const query_tile* tile) {
    const kv_type type = tile->task->cache->type;
    return type == KV_F32 || (type == KV_F16 && tile->num_queries <= MAX_QUERIES);
}

/* Of a block with so many numbers of each position. */
static int groups_at_once(const query_tile* tile, int numbers) {
    const int is_looked_at_once = is_in_place(tile) && tile->num_queries <= MAX_QUERIES;
    return is_looked_at_once ? BLOCK_GROUPS : within(BLOCK_NUMBERS / (KEY_GROUP * numbers), 1, BLOCK_GROUPS);
}

static const uint8_t* find_group(const attention_task* task, int group, int has_values) {
    const kv_cache* cache = task->cache;
    const int block = group * KEY_GROUP / cache->block_tokens, position = group * KEY_GROUP % cache->block_tokens;
    const size_t offset = has_values ? kv_cache_values_offset(cache, position) : kv_cache_keys_offset(cache, position);
    return kv_cache_head(cache, task->block_table[block], task->kv_head) + offset;
}

/* Rows of `count` elements, a multiple of 16, `stride` elements apart: without gaps into `to`. The same rows from `next` on are fetched. */
LANES void take_rows(kv_type type, const uint8_t* from, const uint8_t* next, int num_rows, int count, size_t stride, float* to) {
    for (int row = 0; row < num_rows; row++, from += stride * kv_element_bytes(type), next += stride * kv_element_bytes(type)) {
        for (int i = 0; i < count; i += 16, to += 16) {
            f32x16_store(to, load_elements(type, from, (size_t)i));
            __builtin_prefetch(next + (size_t)i * kv_element_bytes(type), 0, 2);
        }
    }
}

/* Keys [first, first + count) of a quantised group. */
static void take_quantised_keys(const uint8_t* group, const uint8_t* next, int key_dim, int first, int count, float* to) {
    const size_t numbers = kv_scales_bytes(key_dim);
    for (int d = first; d < first + count; d++, to += KEY_GROUP) {
        const f32x16 scales = f32x16_from_f16((const uint16_t*)(group + (size_t)(d / QUANT_BLOCK) * KEY_GROUP * sizeof(uint16_t)));
        const size_t at = numbers + (size_t)d * KEY_GROUP;
        f32x16_store(to, f32x16_mul(scales, f32x16_from_s8((const int8_t*)group + at)));
        __builtin_prefetch(next + at, 0, 2);
    }
}

/* Dimensions [first, first + count) of the values of a quantised group; first is that of a scale. */
static void take_quantised_values(const uint8_t* group, const uint8_t* next, int value_stride, int first, int count, float* to) {
    const size_t numbers = kv_scales_bytes(value_stride);
    for (int i = 0; i < count; i += 16) {
        float scales[KEY_GROUP];
        f32x16_store(scales, f32x16_from_f16((const uint16_t*)(group + (size_t)((first + i) / QUANT_BLOCK) * KEY_GROUP * sizeof(uint16_t))));
        for (int row = 0; row < KEY_GROUP; row++) {
            const size_t at = numbers + (size_t)row * (size_t)value_stride + (size_t)(first + i);
            f32x16_store(to + row * count + i, f32x16_mul(f32x16_set1(scales[row]), f32x16_from_s8((const int8_t*)group + at)));
            __builtin_prefetch(next + at, 0, 2);
        }
    }
}

/* The numbers of group g of a block that are not looked at where they lie. */
static void take_group(const query_tile* tile, const number_block* block, int g, int has_values, float* to) {
    const kv_cache* cache = tile->task->cache;
    const uint8_t *group = block->groups[g], *next = block->next[g];
    if (cache->type == KV_F16) {
        take_rows(KV_F16, group, next, has_values ? KEY_GROUP : 1, block->count * (has_values ? 1 : KEY_GROUP), block->stride, to);
    } else if (has_values) {
        take_quantised_values(group, next, cache->value_stride, block->first, block->count, to);
    } else {
        take_quantised_keys(group, next, cache->key_dim, block->first, block->count, to);
    }
}

/* offset: from where a group begins to the block's numbers, in elements; a quantised group is taken by itself. */
static void find_groups(query_tile* tile, number_block* block, int at_once, int has_values, size_t offset) {
    const kv_type type = tile->task->cache->type;
    const size_t offset_bytes = type == KV_Q8_0 ? 0 : offset * kv_element_bytes(type);
    float* to = tile->numbers;
    block->num_groups = within(tile->end_group - block->group, 0, at_once);
    for (int g = 0; g < block->num_groups; g++, to += KEY_GROUP * block->count) {
        const int group = block->group + g, next = group + at_once < tile->end_group ? group + at_once : group;
        block->groups[g] = find_group(tile->task, group, has_values) + offset_bytes;
        block->next[g] = find_group(tile->task, next, has_values) + offset_bytes;
        if (!is_in_place(tile)) {
            take_group(tile, block, g, has_values, to);
            block->groups[g] = (const uint8_t*)to;
        }
    }
    block->type = is_in_place(tile) ? type : KV_F32;
}

static number_block take_keys(query_tile* tile, int group, int first, int count) {
    number_block block = {.group = group, .first = first, .count = count, .stride = KEY_GROUP};
    find_groups(tile, &block, groups_at_once(tile, count), 0, (size_t)first * KEY_GROUP);
    return block;
}

static number_block take_values(query_tile* tile, int group, int first, int count) {
    number_block block = {.group = group, .first = first, .count = count, .stride = (size_t)tile->task->cache->value_stride};
    find_groups(tile, &block, groups_at_once(tile, VALUE_NUMBERS), 1, (size_t)first);
    block.stride = is_in_place(tile) ? block.stride : (size_t)count;
    return block;
}

/* ---- parts of a tile ---- */

/* What lies behind the pointer is read again: registers are for sums. */
#define FORGET(pointer) __asm__("" : "+r"(pointer))

/* Vectors of sums of each query that go with so many queries. */
LANES int vectors_with(int num_queries) {
    return num_queries * MAX_VECTORS <= FLOAT_ROWS ? MAX_VECTORS : num_queries * 2 <= FLOAT_ROWS ? 2 : 1;
}

/* One copy of the code for each number of queries, so that its sums stay in registers. */
#define QUERIES_CASE(n, function, ...)                                \
    case n:                                                           \
        if (n <= MAX_QUERIES) {                                       \
            function(n < MAX_QUERIES ? n : MAX_QUERIES, __VA_ARGS__); \
        }                                                             \
        break;
#define FOR_QUERIES(num_queries, function, ...)               \
    switch (num_queries) {                                    \
        QUERIES_CASE(1, function, __VA_ARGS__)                \
        QUERIES_CASE(2, function, __VA_ARGS__)                \
        QUERIES_CASE(3, function, __VA_ARGS__)                \
        QUERIES_CASE(4, function, __VA_ARGS__)                \
        QUERIES_CASE(5, function, __VA_ARGS__)                \
        QUERIES_CASE(6, function, __VA_ARGS__)                \
        QUERIES_CASE(7, function, __VA_ARGS__)                \
        QUERIES_CASE(8, function, __VA_ARGS__)                \
    }
/* And for each type that numbers have. */
#define FOR_BLOCK(block, num_queries, function, ...)                \
    if ((block)->type == KV_F32) {                                  \
        FOR_QUERIES(num_queries, function, KV_F32, __VA_ARGS__)     \
    } else {                                                        \
        FOR_QUERIES(num_queries, function, KV_F16, __VA_ARGS__)     \
    }

/* [groups][queries][16]: scores, then weights. */
LANES float* scores_of(const query_tile* tile, int group, int query) {
    return tile->task->scores + ((size_t)(group - tile->first_group) * (size_t)tile->num_queries + (size_t)query) * KEY_GROUP;
}

/* From a query's scores of a group to those of the next group. */
LANES size_t scores_stride(const query_tile* tile) { return (size_t)tile->num_queries * KEY_GROUP; }

/* ---- scores ---- */

LANES void score_groups(
    int num_queries, kv_type type, int num_vectors, const number_block* block, int first, const float* queries, float* scores, size_t ld
) {
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    const uint8_t* const* keys = block->groups + first;
    const uint8_t* const* next = block->next + first;
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
    }
    for (int d = 0; d < block->count; d++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            const f32x16 key = load_elements(type, keys[v], (size_t)d * KEY_GROUP);
            if (type != KV_F32) {
                __builtin_prefetch(next[v] + (size_t)d * KEY_GROUP * kv_element_bytes(type));
            }
            FORGET(queries);
            UNROLL_ROWS
            for (int q = 0; q < num_queries; q++) {
                sums[q][v] = f32x16_fma(f32x16_set1(queries[d * num_queries + q]), key, sums[q][v]);
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            f32x16_store(scores + (size_t)v * ld + (size_t)q * KEY_GROUP, sums[q][v]);
        }
    }
}

LANES void score_part(
    int num_queries, kv_type type, const number_block* block, int first, int end, const float* queries, float* scores, size_t ld
) {
    const int num_vectors = vectors_with(num_queries);
    for (; first + num_vectors <= end; first += num_vectors, scores += (size_t)num_vectors * ld) {
        score_groups(num_queries, type, num_vectors, block, first, queries, scores, ld);
    }
    for (; first < end; first++, scores += ld) {
        score_groups(num_queries, type, 1, block, first, queries, scores, ld);
    }
}

/* Groups [first, end) of the block. */
static void score_any_part(const query_tile* tile, const number_block* block, int query, int num_queries, int first, int end) {
    const float* queries = tile->queries + (size_t)query * (size_t)block->count;
    float* scores = scores_of(tile, block->group + first, query);
    const size_t ld = scores_stride(tile);
    FOR_BLOCK(block, num_queries, score_part, block, first, end, queries, scores, ld)
}

static void hide_scores(float* scores, int begin, int end) {
    for (int i = 0; i < KEY_GROUP; i++) {
        scores[i] = i >= begin && i < end ? scores[i] : -INFINITY;
    }
}

/* Softcap and maximum of the scores of groups [first, end); -infinity where the query does not see. */
static void bound_scores(query_tile* tile, int query, int first, int end) {
    const int begin_seen = tile->begins[query], end_seen = tile->ends[query];
    const int first_whole = groups_to(begin_seen), end_whole = end_seen / KEY_GROUP;
    const float softcap = tile->task->softcap;
    f32x16 largest = tile->largest[query];
    for (int group = first; group < end; group++) {
        float* scores = scores_of(tile, group, query);
        if (softcap != 0.0f) {
            f32x16_store(scores, f32x16_softcap(f32x16_load(scores), softcap));
        }
        if (group < first_whole || group >= end_whole) {
            hide_scores(scores, begin_seen - group * KEY_GROUP, end_seen - group * KEY_GROUP);
        }
        largest = f32x16_max(largest, f32x16_load(scores));
    }
    tile->largest[query] = largest;
}

/* The queries of a part over the groups of a block that any of them sees. */
static void score_block(query_tile* tile, const number_block* block, int query, int num_queries) {
    const int block_end = block->group + block->num_groups;
    const int first = within(tile->begins[query] / KEY_GROUP, block->group, block_end);
    const int end = within(groups_to(tile->ends[query + num_queries - 1]), first, block_end);
    if (first < end) {
        score_any_part(tile, block, query, num_queries, first - block->group, end - block->group);
        for (int q = query; q < query + num_queries; q++) {
            bound_scores(tile, q, first, end);
        }
    }
}

static void score_tile(query_tile* tile) {
    for (int group = tile->first_group; group < tile->end_group;) {
        const number_block block = take_keys(tile, group, 0, tile->task->cache->key_dim);
        for (int q = 0; q < tile->num_queries; q += MAX_QUERIES) {
            score_block(tile, &block, q, within(tile->num_queries - q, 0, MAX_QUERIES));
        }
        group += block.num_groups;
    }
}

/* ---- weights ---- */

/* The scores of groups [first, end) become exp(score - max). */
static void exponentiate(query_tile* tile, int first, int end) {
    for (int q = 0; q < tile->num_queries; q++) {
        const int first_seen = tile->begins[q] / KEY_GROUP, end_seen = groups_to(tile->ends[q]);
        const f32x16 maximum = f32x16_set1(tile->maxima[q]);
        f32x16 sum = tile->sums[q];
        for (int group = first > first_seen ? first : first_seen; group < end && group < end_seen; group++) {
            float* scores = scores_of(tile, group, q);
            const f32x16 weight = f32x16_exp_below_0(f32x16_sub(f32x16_load(scores), maximum));
            f32x16_store(scores, weight);
            sum = f32x16_add(sum, weight);
        }
        tile->sums[q] = sum;
    }
}

static float exp_of(float x) { return f32x16_reduce_max(f32x16_exp(f32x16_set1(x))); }

static float inverse_sum(const query_tile* tile, int query) {
    const float* sink = tile->sinks[query];
    return 1.0f / (f32x16_reduce_add(tile->sums[query]) + (sink ? exp_of(*sink - tile->maxima[query]) : 0.0f));
}

/* ---- outputs ---- */

/* Positions [begin, end) of the block, counted from its first one; dimensions from `first` of the block on, of `width` that a head has. */
LANES void mix_vectors(
    int num_queries, kv_type type, int num_vectors, const number_block* block, int begin, int end, int first, const float* weights, size_t ld,
    float* const* out, int width
) {
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    const size_t row_bytes = block->stride * kv_element_bytes(type);
    const int dimension = block->first + first;
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = load_row(out[q], dimension + v * 16, width);
        }
    }
    for (int position = begin, stop; position < end; position = stop) {
        const int group = position / KEY_GROUP, row = position % KEY_GROUP, rest = KEY_GROUP - row;
        const float* weight = weights + (size_t)group * ld + row;
        const size_t offset = (size_t)row * row_bytes + (size_t)first * kv_element_bytes(type);
        const uint8_t *values = block->groups[group] + offset, *next = block->next[group] + offset;
        stop = rest < end - position ? position + rest : end;
        for (int i = 0; i < stop - position; i++, values += row_bytes, next += row_bytes) {
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                const f32x16 value = load_elements(type, values, (size_t)v * 16);
                if (type != KV_F32) {
                    __builtin_prefetch(next + (size_t)v * 16 * kv_element_bytes(type));
                }
                FORGET(weight);
                UNROLL_ROWS
                for (int q = 0; q < num_queries; q++) {
                    sums[q][v] = f32x16_fma(f32x16_set1(weight[q * KEY_GROUP + i]), value, sums[q][v]);
                }
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            store_row(out[q], dimension + v * 16, width, sums[q][v]);
        }
    }
}

LANES void mix_part(
    int num_queries, kv_type type, const number_block* block, int begin, int end, const float* weights, size_t ld, float* const* out, int width
) {
    const int num_vectors = vectors_with(num_queries);
    int first = 0;
    for (; first + 16 * num_vectors <= block->count; first += 16 * num_vectors) {
        mix_vectors(num_queries, type, num_vectors, block, begin, end, first, weights, ld, out, width);
    }
    for (; first < block->count; first += 16) {
        mix_vectors(num_queries, type, 1, block, begin, end, first, weights, ld, out, width);
    }
}

/* Positions [begin, end), all of which these queries see. */
static void mix_any_part(const query_tile* tile, const number_block* block, int query, int num_queries, int begin, int end) {
    if (begin < end) {
        const float* weights = scores_of(tile, block->group, query);
        const size_t ld = scores_stride(tile);
        float* const* out = tile->out + query;
        const int origin = block->group * KEY_GROUP, width = tile->task->cache->value_dim;
        FOR_BLOCK(block, num_queries, mix_part, block, begin - origin, end - origin, weights, ld, out, width)
    }
}

/* The positions that all queries see are shared; each query has those before and behind them alone, since a position that it does not see
   may hold anything, NaN too. */
static void mix_block(const query_tile* tile, const number_block* block, int query, int num_queries) {
    const int *begins = tile->begins + query, *ends = tile->ends + query;
    const int block_begin = block->group * KEY_GROUP, block_end = block_begin + block->num_groups * KEY_GROUP;
    const int begin = within(begins[num_queries - 1], block_begin, block_end), end = within(ends[0], begin, block_end);
    for (int q = 0; q < num_queries; q++) {
        mix_any_part(tile, block, query + q, 1, within(begins[q], block_begin, begin), within(ends[q], block_begin, begin));
    }
    mix_any_part(tile, block, query, num_queries, begin, end);
    for (int q = 0; q < num_queries; q++) {
        mix_any_part(tile, block, query + q, 1, end, within(ends[q], end, block_end));
    }
}

static void mix_values(query_tile* tile) {
    const int width = tile->task->cache->value_stride, numbers = is_in_place(tile) && tile->num_queries <= MAX_QUERIES ? width : VALUE_NUMBERS;
    for (int group = tile->first_group, next; group < tile->end_group; group = next) {
        next = group + groups_at_once(tile, VALUE_NUMBERS);
        exponentiate(tile, group, next);
        for (int first = 0; first < width; first += numbers) {
            const number_block block = take_values(tile, group, first, within(width - first, 0, numbers));
            for (int q = 0; q < tile->num_queries; q += MAX_QUERIES) {
                mix_block(tile, &block, q, within(tile->num_queries - q, 0, MAX_QUERIES));
            }
        }
    }
}

#include "latent.inc.h"

/* ---- queries ---- */

static void describe_query(query_tile* tile, int q, int row, int head) {
    const attention_task* task = tile->task;
    const int key_dim = task->cache->key_dim, part = q / MAX_QUERIES * MAX_QUERIES;
    const int queries = within(tile->num_queries - part, 0, MAX_QUERIES);
    const float* query = task->queries + (size_t)row * task->ld_queries + (size_t)head * task->query_stride;
    float* scaled = tile->queries + (size_t)part * (size_t)key_dim + (q - part);
    for (int d = 0; d < key_dim; d++) {
        scaled[d * queries] = query[d] * task->scale;
    }
    const int width = task->kv_rank ? task->kv_rank : task->cache->value_dim;
    tile->out[q] = task->out + (size_t)row * task->ld_out + (size_t)head * (size_t)width;
    memset(tile->out[q], 0, (size_t)width * sizeof(float));
    tile->sinks[q] = task->sinks ? task->sinks + head : NULL;
    tile->largest[q] = f32x16_set1(tile->sinks[q] ? *tile->sinks[q] : -INFINITY);
    tile->sums[q] = f32x16_zero();
    tile->ends[q] = task->first_position + row + 1;
    tile->begins[q] = task->window && task->window < tile->ends[q] ? tile->ends[q] - task->window : 0;
}

static void attend_tile(query_tile* tile) {
    const int width = tile->task->kv_rank ? tile->task->kv_rank : tile->task->cache->value_dim;
    tile->first_group = tile->begins[0] / KEY_GROUP;
    tile->end_group = groups_to(tile->ends[tile->num_queries - 1]);
    score_tile(tile);
    for (int q = 0; q < tile->num_queries; q++) {
        tile->maxima[q] = f32x16_reduce_max(tile->largest[q]);
    }
    if (tile->task->kv_rank) {
        mix_latents(tile);
    } else {
        mix_values(tile);
    }
    for (int q = 0; q < tile->num_queries; q++) {
        scale_row(tile->out[q], inverse_sum(tile, q), 0.0f, width);
    }
}

static void attention(const attention_task* task) {
    query_tile tile;
    tile.task = task;
    const int num_queries = task->num_rows * task->num_heads;
    for (int first = 0; first < num_queries; first += tile.num_queries) {
        tile.num_queries = within(num_queries - first, 0, MAX_QUERIES_AT_ONCE);
        for (int q = 0; q < tile.num_queries; q++) {
            describe_query(&tile, q, (first + q) / task->num_heads, (first + q) % task->num_heads);
        }
        attend_tile(&tile);
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

LANES void store_numbers(kv_type type, const kv_cache* cache, uint8_t* head, int position, const float* keys, const float* values) {
    uint8_t *key_group = head + kv_cache_keys_offset(cache, position), *value_group = head + kv_cache_values_offset(cache, position);
    const int within_group = position % KEY_GROUP, key_dim = cache->key_dim, value_dim = cache->value_dim;
    for (int d = 0; d < key_dim; d += 16) {
        store_keys(type, key_group, (size_t)d * KEY_GROUP + (size_t)within_group, keys + d, key_dim - d < 16 ? key_dim - d : 16);
    }
    for (int d = 0; d < value_dim; d += 16) {
        const size_t index = (size_t)within_group * (size_t)cache->value_stride + (size_t)d;
        store_values(type, value_group, index, values + d, value_dim - d < 16 ? value_dim - d : 16);
    }
}

/* Number i of n goes to numbers[i * step] of a quantised group whose scales are [scales][16], filled up with zeros to `padded` numbers. */
LANES void store_quantised(uint8_t* group, int within_group, const float* x, int n, int padded, int8_t* numbers, size_t step) {
    for (int first = 0; first < padded; first += QUANT_BLOCK) {
        const int left = n - first, count = padded - first < QUANT_BLOCK ? padded - first : QUANT_BLOCK;
        const f32x16 low = f32x16_load_partial(x + first, left < 16 ? left : 16);
        const f32x16 high = left > 16 ? f32x16_load_partial(x + first + 16, left < 32 ? left - 16 : 16) : f32x16_zero();
        uint8_t block[Q8_0_BYTES];
        quantise_q8_0_block(low, high, block);
        memcpy(group + ((size_t)(first / QUANT_BLOCK) * KEY_GROUP + (size_t)within_group) * sizeof(uint16_t), block, sizeof(uint16_t));
        for (int i = 0; i < count; i++) {
            numbers[(size_t)(first + i) * step] = (int8_t)block[sizeof(uint16_t) + i];
        }
    }
}

static void store_quantised_numbers(const kv_cache* cache, uint8_t* head, int position, const float* keys, const float* values) {
    uint8_t *key_group = head + kv_cache_keys_offset(cache, position), *value_group = head + kv_cache_values_offset(cache, position);
    const int within_group = position % KEY_GROUP;
    int8_t* key_numbers = (int8_t*)key_group + kv_scales_bytes(cache->key_dim) + within_group;
    store_quantised(key_group, within_group, keys, cache->key_dim, cache->key_dim, key_numbers, KEY_GROUP);
    int8_t* value_numbers = (int8_t*)value_group + kv_scales_bytes(cache->value_stride) + (size_t)within_group * (size_t)cache->value_stride;
    store_quantised(value_group, within_group, values, cache->value_dim, cache->value_stride, value_numbers, 1);
}

/* One position's keys and values into the cache of their layer. */
static void store_position(const kv_cache* cache, int block, int within_block, const float* keys, const float* values) {
    for (int head = 0; head < cache->num_kv_heads; head++, keys += cache->key_dim, values += cache->value_dim) {
        uint8_t* memory = kv_cache_head(cache, block, head);
        switch (cache->type) {
            case KV_F32: store_numbers(KV_F32, cache, memory, within_block, keys, values); break;
            case KV_F16: store_numbers(KV_F16, cache, memory, within_block, keys, values); break;
            case KV_Q8_0: store_quantised_numbers(cache, memory, within_block, keys, values); break;
        }
    }
}
