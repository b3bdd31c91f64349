/* What attention over latents does otherwise (arXiv:2405.04434, 2.1.2). The cache has one head, whose keys are the latent and, behind it,
   the rotated key that all heads share; its values are the latents themselves, so there are none beside the keys. Included by
   attention.inc.h.

   Scores and weights are those of all attention. The latents of 16 positions lie across lanes, so that of one query
     out[d] = (sum over j = 0..p of weight[j] * latent[j][d], position j in partial sum j % 16, and the fixed tree) * (1 / sum of
     weights) */

enum { LATENT_NUMBERS = 16 }; /* of latents that are looked at together, of so many groups of positions as there may be in a block */

/* sums [queries][LATENT_NUMBERS][16] of the block's numbers from `first` on, over its groups [begin, end): weights [groups][ld]. */
LANES void mix_numbers(
    int num_queries, kv_type type, int num_vectors, const number_block* block, int begin, int end, int first, const float* weights, size_t ld,
    float* all_sums
) {
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_load(all_sums + ((size_t)q * LATENT_NUMBERS + (size_t)(first + v)) * KEY_GROUP);
        }
    }
    for (int group = begin; group < end; group++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            const f32x16 latent = load_elements(type, block->groups[group], (size_t)(first + v) * KEY_GROUP);
            UNROLL_ROWS
            for (int q = 0; q < num_queries; q++) {
                sums[q][v] = f32x16_fma(f32x16_load(weights + (size_t)group * ld + (size_t)q * KEY_GROUP), latent, sums[q][v]);
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            f32x16_store(all_sums + ((size_t)q * LATENT_NUMBERS + (size_t)(first + v)) * KEY_GROUP, sums[q][v]);
        }
    }
}

LANES void mix_latent_part(
    int num_queries, kv_type type, const number_block* block, int begin, int end, const float* weights, size_t ld, float* sums
) {
    const int num_vectors = vectors_with(num_queries);
    int first = 0;
    for (; first + num_vectors <= block->count; first += num_vectors) {
        mix_numbers(num_queries, type, num_vectors, block, begin, end, first, weights, ld, sums);
    }
    for (; first < block->count; first++) {
        mix_numbers(num_queries, type, 1, block, begin, end, first, weights, ld, sums);
    }
}

/* Groups [begin, end) of the block, all of which these queries see whole. */
static void mix_any_latents(const query_tile* tile, const number_block* block, int query, int num_queries, int begin, int end, float* sums) {
    const float* weights = scores_of(tile, block->group, query);
    const size_t ld = scores_stride(tile);
    FOR_BLOCK(block, num_queries, mix_latent_part, block, begin, end, weights, ld, sums)
}

/* One query's last group, of which it sees n positions: the others may hold anything, NaN too. */
static void mix_last_latents(const query_tile* tile, const number_block* block, int query, int group, int n, float* sums) {
    const f32x16 weight = f32x16_load(scores_of(tile, block->group + group, query));
    for (int i = 0; i < block->count; i++, sums += KEY_GROUP) {
        float latents[KEY_GROUP];
        f32x16_store(latents, block->type == KV_F32 ? load_elements(KV_F32, block->groups[group], (size_t)i * KEY_GROUP)
                                                    : load_elements(KV_F16, block->groups[group], (size_t)i * KEY_GROUP));
        f32x16_store(sums, f32x16_fma(weight, f32x16_load_partial(latents, n), f32x16_load(sums)));
    }
}

/* Groups that all queries see whole are shared. */
static void mix_latent_block(const query_tile* tile, const number_block* block, int query, int num_queries, float* sums) {
    const int shared = within(tile->ends[query] / KEY_GROUP - block->group, 0, block->num_groups);
    mix_any_latents(tile, block, query, num_queries, 0, shared, sums);
    for (int q = query; q < query + num_queries; q++, sums += LATENT_NUMBERS * KEY_GROUP) {
        const int last = tile->ends[q] / KEY_GROUP - block->group, n = tile->ends[q] % KEY_GROUP;
        mix_any_latents(tile, block, q, 1, shared, within(last, shared, block->num_groups), sums);
        if (n && last >= shared && last < block->num_groups) {
            mix_last_latents(tile, block, q, last, n, sums);
        }
    }
}

static void mix_latents(query_tile* tile) {
    float sums[MAX_QUERIES_AT_ONCE * LATENT_NUMBERS * KEY_GROUP];
    exponentiate(tile, tile->first_group, tile->end_group);
    for (int first = 0, count; first < tile->task->kv_rank; first += count) {
        count = within(tile->task->kv_rank - first, 0, LATENT_NUMBERS);
        memset(sums, 0, (size_t)tile->num_queries * LATENT_NUMBERS * KEY_GROUP * sizeof *sums);
        for (int group = 0; group < tile->end_group;) {
            const number_block block = take_keys(tile, group, first, count);
            for (int q = 0; q < tile->num_queries; q += MAX_QUERIES) {
                float* part = sums + (size_t)q * LATENT_NUMBERS * KEY_GROUP;
                mix_latent_block(tile, &block, q, within(tile->num_queries - q, 0, MAX_QUERIES), part);
            }
            group += block.num_groups;
        }
        for (int q = 0; q < tile->num_queries; q++) {
            for (int d = 0; d < count; d++) {
                tile->out[q][first + d] = f32x16_reduce_add(f32x16_load(sums + ((size_t)q * LATENT_NUMBERS + (size_t)d) * KEY_GROUP));
            }
        }
    }
}
