/* A feed-forward block of many experts, of which each row passes the few that a router chooses (router.h), and one that all rows pass.

   y = sum over the row's experts of weight * (down * activation(gate * x, up * x)), each product with its bias where there is one. A row's
   sum goes through its experts in order of their index, the shared one last: y = fma(weight, output, y), from zero. That is the order
   in which transformers adds them up. A row's result depends on that row alone.

   Rows are computed expert by expert: of a stack only the matrices of experts that a row has chosen are read, each of them once for all of
   its rows. Where experts come into memory when they are chosen (stacks.h), those that are there are computed first, while the others come;
   if more are chosen than may be wanted at once, some after the others, so that sums keep their order. */
#ifndef DAIRLLM_EXPERTS_H
#define DAIRLLM_EXPERTS_H

#include "kernel_table.h"
#include "router.h"
#include "stacks.h"

/* Weights belong to the caller. What may be NULL: biases, and what is shared; shared_router (its output's sigmoid is the weight of the
   shared expert, which is 1 without it) has one output. Biases of experts are [num_experts, outputs]. */
typedef struct expert_block {
    router_spec choice;
    activation_spec activation;
    const packed_matrix* router;
    const float *router_bias, *selection_bias;
    const packed_stack *gate, *up, *down;
    const float *gate_bias, *up_bias, *down_bias;
    const packed_matrix *shared_gate, *shared_up, *shared_down, *shared_router;
} expert_block;

typedef struct experts_rows {
    int num_rows;
    const float* x;       /* [num_rows, hidden] */
    float* logits;        /* router * x, [num_rows, num_experts]; they become scores */
    float* shared_logits; /* shared router * x, [num_rows], which become their sigmoids; NULL without one */
    float* out;           /* [num_rows, hidden]; may be x */
} experts_rows;

size_t experts_scratch_bytes(const expert_block* block, int max_rows);
/* scratch: experts_scratch_bytes of as many rows, 64-byte aligned. 0, or -1 if experts did not come. */
int experts_run(const expert_block* block, const kernel_table* kernels, int num_threads, const experts_rows* rows, void* scratch);

#endif
