#include "router.h"

int router_scratch_numbers(const router_spec* router) {
    return router->num_experts + router->num_groups + router->num_groups_used + router->group_best;
}

/* Whether a number is chosen before one of lower index. */
static int is_better(float a, float b) { return a > b || (a != a && b == b); }

/* Puts `index` where it belongs among the best `most` of those before it, of which there are `count`; returns how many there are then. */
static int insert(const float* numbers, int index, int32_t* best, int count, int most) {
    if (count == most && !is_better(numbers[index], numbers[best[count - 1]])) {
        return count;
    }
    int place = count < most ? count : most - 1;
    for (; place > 0 && is_better(numbers[index], numbers[best[place - 1]]); place--) {
        best[place] = best[place - 1];
    }
    best[place] = index;
    return count < most ? count + 1 : count;
}

static float score_group(const float* numbers, int size, int summed, int32_t* best) {
    int count = 0;
    for (int i = 0; i < size; i++) {
        count = insert(numbers, i, best, count, summed);
    }
    float score = numbers[best[0]];
    for (int i = 1; i < count; i++) {
        score += numbers[best[i]];
    }
    return score;
}

/* Their indexes, best first; behind them there is room for group_best more. */
static void choose_groups(const router_spec* router, const float* numbers, float* scores, int32_t* groups) {
    const int size = router->num_experts / router->num_groups;
    int count = 0;
    for (int group = 0; group < router->num_groups; group++) {
        scores[group] = score_group(numbers + group * size, size, router->group_best, groups + router->num_groups_used);
        count = insert(scores, group, groups, count, router->num_groups_used);
    }
}

static void sort(int32_t* numbers, int count) {
    for (int i = 1; i < count; i++) {
        const int32_t moved = numbers[i];
        int place = i;
        for (; place > 0 && numbers[place - 1] > moved; place--) {
            numbers[place] = numbers[place - 1];
        }
        numbers[place] = moved;
    }
}

static void choose_best(const router_spec* router, const float* numbers, float* scratch, int32_t* chosen) {
    int32_t whole = 0, *groups = &whole;
    int num_groups = 1, size = router->num_experts, count = 0;
    if (router->num_groups_used < router->num_groups) {
        groups = (int32_t*)(scratch + router->num_groups);
        choose_groups(router, numbers, scratch, groups);
        num_groups = router->num_groups_used;
        size = router->num_experts / router->num_groups;
        sort(groups, num_groups); /* so that of equal experts the lower index is seen first */
    }
    for (int g = 0; g < num_groups; g++) {
        for (int expert = groups[g] * size; expert < (groups[g] + 1) * size; expert++) {
            count = insert(numbers, expert, chosen, count, router->num_used);
        }
    }
}

static void weigh(const kernel_table* kernels, const router_spec* router, float* weights) {
    if (router->kind == ROUTER_SOFTMAX_OF_CHOSEN) {
        kernels->softmax_row(weights, router->num_used);
    }
    const float divisor = router->normalised ? kernels->sum_row(weights, router->num_used) + 1e-20f : 1.0f;
    for (int i = 0; i < router->num_used; i++) {
        weights[i] = weights[i] / divisor * router->scale;
    }
}

void choose_experts(const kernel_table* kernels, const router_spec* router, float* logits, const float* selection_bias, float* scratch,
                    int32_t* chosen, float* weights) {
    float* by = logits;
    if (router->kind == ROUTER_SOFTMAX) {
        kernels->softmax_row(logits, router->num_experts);
    } else if (router->kind == ROUTER_SIGMOID) {
        kernels->sigmoid_row(logits, router->num_experts);
    }
    if (selection_bias) {
        by = scratch;
        for (int i = 0; i < router->num_experts; i++) {
            by[i] = logits[i] + selection_bias[i];
        }
    }
    choose_best(router, by, scratch + router->num_experts, chosen);
    for (int i = 0; i < router->num_used; i++) {
        weights[i] = logits[chosen[i]];
    }
    weigh(kernels, router, weights);
}
