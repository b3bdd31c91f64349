/* The stage runner: a contiguous run of units (embedding, layers, head) of a Llama-like model over one micro-batch of mixed slices.

   Between two units the residual stream is rounded by the spec's encoding, whether both run here or not; the boundaries in front of the first
   unit and behind the last are the caller's. Arguments of stage_run are valid (stage.pxi checks them). A row's result depends on its sequence alone: not on the slices beside it, on how
   its sequence was cut into slices and runs, on threads, or on the instruction set. */
#ifndef DAIRLLM_STAGE_H
#define DAIRLLM_STAGE_H

#include "kernel_table.h"
#include "kv_cache.h"
#include "pool.h"

typedef struct stage_spec {
    int hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, rope_dim, rope_interleaved, num_layers;
    int boundary_encoding; /* what rounds the residual stream between any two units */
    float rms_norm_eps, attention_scale;
    const double* rope_frequencies; /* rope_dim / 2 angles per position; copied by stage_create */
} stage_spec;

/* Weights belong to the caller and outlive the stage. A bias may be NULL. */
typedef struct stage_layer {
    const float *attention_norm, *ffn_norm, *q_bias, *k_bias, *v_bias, *attention_output_bias;
    const packed_matrix *q, *k, *v, *attention_output, *gate, *up, *down;
} stage_layer;

typedef struct stage_slice {
    int num_rows, first_position;
    const int32_t* block_table;
} stage_slice;

typedef struct stage_batch {
    int first_unit, end_unit;       /* what to compute, of the units that the stage has: 0 embedding, then the layers, num_layers + 1 head */
    const kv_cache* const* caches;  /* one per layer of the stage, if layers are computed */
    const int32_t* token_ids;       /* [rows], if the embedding is computed */
    const float* hidden;            /* [rows, hidden_size], else; rounded already, as it is after the wire */
    const stage_slice* slices;
    int num_slices, num_rows;
    const int32_t* logits_rows;     /* if the head is computed */
    int num_logits_rows;
    float* out;                     /* [rows, hidden_size], not rounded yet, or [num_logits_rows, vocabulary] */
} stage_batch;

typedef struct stage stage;

stage* stage_create(const stage_spec* spec, int max_rows, int max_context); /* NULL if there is no memory */
void stage_free(stage* s);
void stage_set_embedding(stage* s, const packed_matrix* table);
void stage_add_layer(stage* s, int index, const stage_layer* layer);        /* the next index, or one that is there and is replaced */
void stage_set_head(stage* s, const float* norm, const packed_matrix* output);
size_t stage_scratch_bytes(const stage* s);
int stage_run(stage* s, const stage_batch* batch);                          /* 0, or -1 if there is no memory; one run at a time, others wait */

/* angles per position: theta^(-2i / rope_dim), divided by factors[i] unless factors is NULL */
void rope_frequencies(double theta, int rope_dim, const double* factors, double* out);

#endif
