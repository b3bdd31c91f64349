/* The stage runner: a contiguous run of units (embedding, layers, head) of a decoder over one micro-batch of mixed slices.

   A layer is two blocks, attention and feed-forward, each of some kind; layers may differ in everything. Between two units the residual stream
   is rounded by the spec's encoding, whether both run here or not; the boundaries in front of the first unit and behind the last are the
   caller's. Arguments are valid (stage.pxi and stage_layers.pxi check them). A row's result depends on its sequence alone: not on the slices
   beside it, on how its sequence was cut into slices and runs, on threads, or on the instruction set. */
#ifndef DAIRLLM_STAGE_H
#define DAIRLLM_STAGE_H

#include "elementwise.h"
#include "experts.h"
#include "kernel_table.h"
#include "kv_cache.h"
#include "linear.h"
#include "pool.h"
#include "stacks.h"

enum { STAGE_LACKS_EXPERTS = 1 };

typedef struct stage stage;
typedef struct block_kind block_kind; /* phases.h */

/* Beside the residual stream a row may carry numbers along for layers behind: they are rounded once, where they are made, to F16 (with a
   boundary encoding of F32 not at all), which later roundings leave as they are. */

/* Rotary positions of the first `dim` numbers of a head; dim 0: none. The angle of pair i at a position is position * frequencies[i]. */
typedef struct rope_spec {
    int dim, interleaved;
    float magnitude;           /* by which the rotated numbers are multiplied */
    const double* frequencies; /* dim / 2; copied when the layer is added */
} rope_spec;

/* Weights belong to the caller and outlive the stage. A bias, and `sinks`, may be NULL. */
typedef struct self_attention {
    int num_heads, num_kv_heads, key_dim, value_dim;
    int window;                /* positions that a row sees, 0: all */
    int output_gate;           /* behind each head's queries, q gives as many numbers whose sigmoid gates the head's output */
    float scale, softcap;      /* of the scores; softcap 0: none */
    rope_spec rope;
    norm_spec q_norm, k_norm, v_norm; /* of each head; norm_spans_heads: q_norm and k_norm of all heads together */
    int norm_spans_heads;
    const float *q_bias, *k_bias, *v_bias, *output_bias, *sinks;
    const packed_matrix *q, *k, *v, *output; /* k and v NULL: taken from what rows carry, where another layer has put them */
    int carried_keys;          /* where in the carried numbers keys and then values are put, or taken from; -1: nowhere */
    int angles;                /* which of the stage's tables, set when the layer is added */
} self_attention;

/* Either q_a and q, or q alone. k_b [kv_rank, key_dim] and v_b [value_dim, kv_rank] of each head. Biases may be NULL. */
typedef struct latent_attention {
    int num_heads, kv_rank, key_dim, value_dim;
    float scale;
    rope_spec rope;
    norm_spec query_norm, latent_norm;
    const float *q_a_bias, *kv_a_bias, *output_bias;
    const packed_matrix *q_a, *q, *kv_a, *output;
    const packed_stack *k_b, *v_b;
    int angles;
} latent_attention;

typedef struct linear_attention {
    linear_shape shape;
    norm_spec output_norm;     /* of each head */
    const float* conv;         /* [conv_width][channels] */
    const float *decay, *time_bias; /* of each value head */
    const packed_matrix *qkv, *gate, *alpha, *beta, *output;
} linear_attention;

typedef struct dense_feed_forward {
    int intermediate_size;
    activation_spec activation;
    const float *gate_bias, *up_bias, *down_bias;
    const packed_matrix *gate, *up, *down;
} dense_feed_forward;

/* x += post_norm(output(activation(gate x) * e)), e being carried numbers. */
typedef struct per_layer_input {
    int width, offset;         /* of e; width 0: there is none */
    activation_spec activation;
    norm_spec post_norm;
    const packed_matrix *gate, *output;
} per_layer_input;

typedef struct stage_layer {
    norm_spec attention_norm, attention_post_norm, feed_forward_norm, feed_forward_post_norm; /* NORM_NONE: there is none */
    float residual_scale;
    const block_kind *attention_kind, *feed_forward_kind;
    union {
        self_attention self;
        latent_attention latent;
        linear_attention linear;
    } attention;
    union {
        dense_feed_forward dense;
        expert_block experts;
    } feed_forward;
    per_layer_input input;
    float output_scale;        /* of all that comes out of the layer */
} stage_layer;

/* What the embedding gives to carry for each layer, one after the other: scale * (norm(projection x) + embedding_scale * table[token]). */
typedef struct per_layer_embedding {
    int width;                 /* of one layer, which the norm is of */
    float embedding_scale, scale;
    norm_spec norm;
    const packed_matrix *table, *projection;
} per_layer_embedding;

extern const block_kind SELF_ATTENTION, LATENT_ATTENTION, LINEAR_ATTENTION, DENSE_FEED_FORWARD, EXPERT_FEED_FORWARD;

typedef struct stage_spec {
    int hidden_size, carried_width, num_layers;
    int boundary_encoding;     /* what rounds the residual stream between any two units */
    float embedding_scale, logit_scale, logit_softcap; /* softcap 0: none */
} stage_spec;

typedef struct stage_slice {
    int num_rows, first_position;
    const int32_t* block_table;
    const int32_t* state_slots; /* [layers of the stage][2]: of a layer with states, the slot to read, below 0 for none, and the one to write */
} stage_slice;

typedef struct stage_batch {
    int first_unit, end_unit;       /* what to compute, of the units that the stage has: 0 embedding, then the layers, num_layers + 1 head */
    const kv_cache* const* caches;  /* one per layer of the stage, if layers are computed */
    const int32_t* token_ids;       /* [rows], if the embedding is computed */
    const float* hidden;            /* [rows, hidden_size + carried_width], else; rounded already, as it is after the wire */
    const stage_slice* slices;
    int num_slices, num_rows;
    const int32_t* logits_rows;     /* if the head is computed */
    int num_logits_rows;
    float* out;                     /* [rows, hidden_size + carried_width], not rounded yet, or [num_logits_rows, vocabulary] */
} stage_batch;

stage* stage_create(const stage_spec* spec, int max_rows, int max_context); /* NULL if there is no memory */
void stage_free(stage* s);
void stage_set_embedding(stage* s, const packed_matrix* table, const per_layer_embedding* per_layer); /* per_layer: NULL for none */
/* The next index, or one that is there and is replaced. 0, or -1 if there is no memory. */
int stage_add_layer(stage* s, int index, const stage_layer* layer);
void stage_set_head(stage* s, const norm_spec* norm, const packed_matrix* output);
size_t stage_scratch_bytes(const stage* s);
/* 0, -1 if there is no memory, or STAGE_LACKS_EXPERTS if some did not come into memory. One run at a time, others wait. */
int stage_run(stage* s, const stage_batch* batch);

/* angles per position: theta^(-2i / rope_dim), divided by factors[i] unless factors is NULL */
void rope_frequencies(double theta, int rope_dim, const double* factors, double* out);

#endif
