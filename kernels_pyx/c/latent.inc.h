/* What attention over latents does otherwise (arXiv:2405.04434, 2.1.2). The cache has one head, whose keys are the latent and, behind it,
   the rotated key that all heads share; its values are the latents themselves, so there are none beside the keys. Included by
   attention.inc.h.

   Scores and weights are those of all attention. The latents of 16 positions lie across lanes, so that of one query
     out[d] = (sum over j = 0..p of weight[j] * latent[j][d], position j in partial sum j % 16, and the fixed tree) * (1 / sum of
     weights) */

LANES f32x16 load_first_elements(kv_type type, const uint8_t* base, size_t index, int n) {
    const uint8_t* from = base + index * kv_element_bytes(type);
    return type == KV_F32 ? f32x16_load_partial((const float*)from, n) : f32x16_from_f16_partial((const uint16_t*)from, n);
}

/* Numbers [first, first + num_vectors) of the outputs of all queries. Groups that all queries see whole are shared; each query then goes on
   alone, since a position that it does not see may hold anything, NaN too. */
LANES void mix_latents(kv_type type, int num_queries, int num_vectors, const query_batch* batch, int first) {
    const attention_task* task = batch->task;
    const int shared = batch->ends[0] / KEY_GROUP;
    f32x16 sums[MAX_QUERIES][MAX_VECTORS];
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            sums[q][v] = f32x16_zero();
        }
    }
    for (int group = 0; group < shared; group++) {
        const uint8_t* latents = keys_of_group(type, task, group);
        f32x16 latent[MAX_VECTORS];
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            latent[v] = load_elements(type, latents, (size_t)(first + v) * KEY_GROUP);
        }
        UNROLL_ROWS
        for (int q = 0; q < num_queries; q++) {
            const f32x16 weights = f32x16_load(task->scores + (size_t)q * task->ld_scores + (size_t)group * KEY_GROUP);
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                sums[q][v] = f32x16_fma(weights, latent[v], sums[q][v]);
            }
        }
    }
    UNROLL_ROWS
    for (int q = 0; q < num_queries; q++) {
        for (int group = shared; group * KEY_GROUP < batch->ends[q]; group++) {
            const uint8_t* latents = keys_of_group(type, task, group);
            const int left = batch->ends[q] - group * KEY_GROUP, n = left < KEY_GROUP ? left : KEY_GROUP;
            const f32x16 weights = f32x16_load(task->scores + (size_t)q * task->ld_scores + (size_t)group * KEY_GROUP);
            UNROLL_ROWS
            for (int v = 0; v < num_vectors; v++) {
                sums[q][v] = f32x16_fma(weights, load_first_elements(type, latents, (size_t)(first + v) * KEY_GROUP, n), sums[q][v]);
            }
        }
        UNROLL_ROWS
        for (int v = 0; v < num_vectors; v++) {
            batch->out[q][first + v] = f32x16_reduce_add(sums[q][v]) * batch->inverse_sum[q];
        }
    }
}

LANES void mix_latent_batch(kv_type type, int num_queries, int max_vectors, const query_batch* batch) {
    const int kv_rank = batch->task->kv_rank;
    int first = 0;
    for (; first + max_vectors <= kv_rank; first += max_vectors) {
        mix_latents(type, num_queries, max_vectors, batch, first);
    }
    for (; first < kv_rank; first++) {
        mix_latents(type, num_queries, 1, batch, first);
    }
}
