/* Which experts a row goes to, and with what weights.

   The arithmetic, for the logits of one row:
     scores     softmax over all experts, or the sigmoid of each, or (softmax of the chosen) the logits themselves
     selection  by score + selection bias; ties go to the lower index, NaN counts as the largest, so that what is broken shows.
                With groups, first the best ones are chosen, each by the sum of its `group_best` best numbers, best first: one in
                DeepSeek-V2 (arXiv:2405.04434, section 2.2.2), two in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2)
     weights    the scores of the chosen, best first (a softmax over them, for the third kind); if they are normalised, divided by
                their sum + 1e-20; times the scale */
#ifndef DAIRLLM_ROUTER_H
#define DAIRLLM_ROUTER_H

#include "kernel_table.h"

typedef enum { ROUTER_SOFTMAX, ROUTER_SIGMOID, ROUTER_SOFTMAX_OF_CHOSEN, NUM_ROUTER_KINDS } router_kind;

/* num_experts is a multiple of num_groups; the groups used have num_used experts or more, and a group has group_best or more. */
typedef struct router_spec {
    router_kind kind;
    int num_experts, num_used, num_groups, num_groups_used, group_best, normalised;
    float scale;
} router_spec;

/* Numbers that choose_experts wants as scratch. */
int router_scratch_numbers(const router_spec* router);

/* logits [num_experts] become scores; selection_bias [num_experts] or NULL; chosen, weights [num_used], best first. */
void choose_experts(const kernel_table* kernels, const router_spec* router, float* logits, const float* selection_bias, float* scratch,
                    int32_t* chosen, float* weights);

#endif
