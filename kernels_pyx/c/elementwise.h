/* Norms and activations as data: what elementwise.inc.h computes by. */
#ifndef DAIRLLM_ELEMENTWISE_H
#define DAIRLLM_ELEMENTWISE_H

typedef enum norm_kind { NORM_NONE, NORM_RMS, NORM_LAYER } norm_kind;

typedef struct norm_spec {
    norm_kind kind;
    float epsilon;
    const float* weight; /* NULL: ones */
} norm_spec;

typedef enum activation_kind { ACTIVATION_SILU, ACTIVATION_GELU_TANH, ACTIVATION_SILU_CLAMPED } activation_kind;

/* Of the gate of a feed-forward block. alpha, limit: of ACTIVATION_SILU_CLAMPED; limit may be infinite. */
typedef struct activation_spec {
    activation_kind kind;
    float alpha, limit;
} activation_spec;

#endif
