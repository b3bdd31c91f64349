#include "experts.h"

#include <string.h>

#include "phases.h"

enum {
    CHUNKS_PER_THREAD = 8,
    ROWS_PER_CHUNK = 4,     /* fewer rows are not worth waking a thread for */
    MACS_PER_CHUNK = 40000, /* about 2 us of one row, with weights from memory */
    READING_ROWS = 8,       /* reading a matrix takes about as long as computing so many rows with it */
    TILE_STEP = 4,          /* kernels of one row like tiles by fours */
    SHARED = -1,
};

/* ---- scratch ---- */

/* Rows that pass one expert: of that expert's matrices, activations as these want them, and what comes out. */
typedef struct {
    packed_matrix gate, up, down;
    int expert;                  /* SHARED: the one that all rows pass */
    int comes;                   /* it is not in memory yet */
    const float *gate_bias, *up_bias, *down_bias;
    int first_slot, num_rows;
    void *gate_input, *up_input; /* the same if their formats are */
    void* down_input;
    float *gated, *raised;       /* [num_rows, intermediate] */
} expert_group;

/* Some tiles of a group's gate and up. */
typedef struct {
    int group, tile_begin, tile_end;
} expert_item;

/* A slot is a pair of a row and an expert that it passes; slots of one expert follow one another, their rows ascend. */
typedef struct {
    float *choosing, *weights;
    int32_t *chosen, *first_slot;
    int32_t *slot_row, *slot_group;
    float* slot_weight;
    expert_group* groups;
    expert_item* items;
    int32_t* wanted;
    uint8_t* is_there;           /* of those that are wanted */
    float* sums;                 /* [rows, hidden], where some experts are computed after others */
    uint8_t *inputs, *numbers;   /* activations, then those of the last product; gated and raised */
    float* outputs;              /* [rows, hidden]: of the last product, for one expert after the other */
    size_t size_bytes;
} experts_scratch;

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t input_bytes(const packed_matrix* matrix, int rows) { return (size_t)rows * activation_bytes(matrix->format, 1, matrix->inputs); }

static size_t inputs_of_pair(const packed_matrix* gate, const packed_matrix* up, int rows) {
    return round_up(input_bytes(gate, rows)) + (gate->format == up->format ? 0 : round_up(input_bytes(up, rows)));
}

static int most_groups(const expert_block* block, int rows) {
    const int64_t pairs = (int64_t)rows * block->choice.num_used;
    return (int)(pairs < block->choice.num_experts ? pairs : block->choice.num_experts) + (block->shared_gate != NULL);
}

/* Of all groups, however many rows each of them has: every group may round its parts up. */
static size_t most_input_bytes(const expert_block* block, int rows) {
    const int pairs = rows * block->choice.num_used;
    const size_t rounding = (size_t)most_groups(block, rows) * 2 * 64;
    size_t first = inputs_of_pair(&block->gate->all, &block->up->all, pairs), last = input_bytes(&block->down->all, pairs);
    if (block->shared_gate) {
        first += inputs_of_pair(block->shared_gate, block->shared_up, rows);
        last += input_bytes(block->shared_down, rows);
    }
    return max_size(first, last) + rounding;
}

static size_t most_number_bytes(const expert_block* block, int rows) {
    const size_t routed = (size_t)rows * (size_t)block->choice.num_used * (size_t)block->gate->outputs;
    const size_t shared = block->shared_gate ? (size_t)rows * (size_t)block->shared_gate->outputs : 0;
    return 2 * (routed + shared) * sizeof(float);
}

/* The parts of a scratch that begins at `base` (NULL: only its size is of use). */
static experts_scratch lay_out_scratch(const expert_block* block, int max_rows, uint8_t* base) {
    const router_spec* choice = &block->choice;
    const size_t rows = (size_t)max_rows, pairs = rows * (size_t)choice->num_used, slots = pairs + (block->shared_gate ? rows : 0);
    const size_t experts = (size_t)choice->num_experts, groups = (size_t)most_groups(block, max_rows);
    const size_t items = groups + (size_t)(CHUNKS_PER_THREAD * POOL_MAX_THREADS);
    scratch_cursor cursor = {base, 0};
    experts_scratch parts;
    parts.choosing = take_scratch(&cursor, rows * (size_t)router_scratch_numbers(choice) * sizeof(float));
    parts.weights = take_scratch(&cursor, pairs * sizeof(float));
    parts.chosen = take_scratch(&cursor, pairs * sizeof(int32_t));
    parts.first_slot = take_scratch(&cursor, (experts + 1) * sizeof(int32_t));
    parts.slot_row = take_scratch(&cursor, slots * sizeof(int32_t));
    parts.slot_group = take_scratch(&cursor, slots * sizeof(int32_t));
    parts.slot_weight = take_scratch(&cursor, slots * sizeof(float));
    parts.groups = take_scratch(&cursor, groups * sizeof(expert_group));
    parts.items = take_scratch(&cursor, items * sizeof(expert_item));
    parts.wanted = take_scratch(&cursor, experts * sizeof(int32_t));
    parts.is_there = take_scratch(&cursor, experts);
    parts.sums = take_scratch(&cursor, block->gate->places ? rows * (size_t)block->down->outputs * sizeof(float) : 0);
    parts.inputs = take_scratch(&cursor, most_input_bytes(block, max_rows));
    parts.numbers = take_scratch(&cursor, most_number_bytes(block, max_rows));
    parts.outputs = take_scratch(&cursor, rows * (size_t)block->down->outputs * sizeof(float));
    parts.size_bytes = cursor.at;
    return parts;
}

size_t experts_scratch_bytes(const expert_block* block, int max_rows) { return lay_out_scratch(block, max_rows, NULL).size_bytes; }

/* ---- phases: each is one pool_run ---- */

typedef struct {
    const expert_block* block;
    const kernel_table* kernels;
    int num_threads, num_rows, num_groups, num_chunks;
    int first_group, end_group;  /* that are computed now */
    int comes;                   /* of these, those that had to come, or the others */
    const float* x;
    float *logits, *shared_logits, *out;
    experts_scratch scratch;
} experts_step;

static void run_chunks(experts_step* step, int num_chunks, pool_function function) {
    step->num_chunks = num_chunks;
    pool_run_limited(pool_shared(), num_chunks, step->num_threads, function, step);
}

static int most_chunks(const experts_step* step, int64_t wanted) {
    const int most = CHUNKS_PER_THREAD * step->num_threads;
    return wanted < 1 ? 1 : wanted < most ? (int)wanted : most;
}

static void run_each(experts_step* step, int num_rows, pool_function function) {
    run_chunks(step, most_chunks(step, num_rows / ROWS_PER_CHUNK), function);
}

/* Row `row` of x becomes row `index` of the activations of `rows` rows. */
static void prepare_row_of(const experts_step* step, const packed_matrix* matrix, const float* x, int row, int index, int rows, void* input) {
    const size_t width = (size_t)matrix->inputs;
    const float* first = x + (size_t)row * width - (size_t)index * width;
    step->kernels->prepare_activations(matrix->format, first, width, index, index + 1, rows, matrix->inputs, input);
}

/* ---- routing ---- */

static void choose_rows(void* context, int chunk) {
    const experts_step* step = context;
    const expert_block* block = step->block;
    const experts_scratch* scratch = &step->scratch;
    const size_t experts = (size_t)block->choice.num_experts, used = (size_t)block->choice.num_used;
    const size_t choosing = (size_t)router_scratch_numbers(&block->choice);
    const size_t begin = (size_t)chunk_begin(step->num_rows, chunk, step->num_chunks);
    const size_t end = (size_t)chunk_begin(step->num_rows, chunk + 1, step->num_chunks);
    for (size_t row = begin; row < end; row++) {
        float* logits = step->logits + row * experts;
        if (block->router_bias) {
            step->kernels->add_row(logits, block->router_bias, (int)experts);
        }
        choose_experts(step->kernels, &block->choice, logits, block->selection_bias, scratch->choosing + row * choosing,
                       scratch->chosen + row * used, scratch->weights + row * used);
    }
    if (step->shared_logits) {
        step->kernels->sigmoid_row(step->shared_logits + begin, (int)(end - begin));
    }
}

/* ---- grouping ---- */

static const float* row_of(const float* rows, int row, int width) { return rows ? rows + (size_t)row * (size_t)width : NULL; }

static expert_group group_of_expert(const expert_block* block, int expert) {
    return (expert_group){
        .expert = expert,
        .gate = stack_matrix(block->gate, expert),
        .up = stack_matrix(block->up, expert),
        .down = stack_matrix(block->down, expert),
        .gate_bias = row_of(block->gate_bias, expert, block->gate->outputs),
        .up_bias = row_of(block->up_bias, expert, block->up->outputs),
        .down_bias = row_of(block->down_bias, expert, block->down->outputs),
    };
}

static void add_group(experts_step* step, expert_group group, int first_slot, int num_rows) {
    group.first_slot = first_slot;
    group.num_rows = num_rows;
    for (int slot = first_slot; slot < first_slot + num_rows; slot++) {
        step->scratch.slot_group[slot] = step->num_groups;
    }
    step->scratch.groups[step->num_groups++] = group;
}

/* Where the groups' activations and results lie. Those of the last product take the place of the first ones. */
static void place_groups(experts_step* step) {
    size_t first = 0, last = 0, numbers = 0;
    for (int g = 0; g < step->num_groups; g++) {
        expert_group* group = &step->scratch.groups[g];
        const size_t gate_bytes = round_up(input_bytes(&group->gate, group->num_rows));
        const size_t number_bytes = (size_t)group->num_rows * (size_t)group->gate.outputs * sizeof(float);
        group->gate_input = step->scratch.inputs + first;
        group->up_input = step->scratch.inputs + first + (group->gate.format == group->up.format ? 0 : gate_bytes);
        group->down_input = step->scratch.inputs + last;
        group->gated = (float*)(step->scratch.numbers + numbers);
        group->raised = (float*)(step->scratch.numbers + numbers + number_bytes);
        first += inputs_of_pair(&group->gate, &group->up, group->num_rows);
        last += round_up(input_bytes(&group->down, group->num_rows));
        numbers += 2 * number_bytes;
    }
}

/* Sorts the pairs of rows and experts by counting. */
static void group_rows(experts_step* step) {
    const expert_block* block = step->block;
    const experts_scratch* scratch = &step->scratch;
    const int experts = block->choice.num_experts, used = block->choice.num_used, pairs = step->num_rows * used;
    int32_t* first = scratch->first_slot;
    memset(first, 0, (size_t)(experts + 1) * sizeof *first);
    for (int i = 0; i < pairs; i++) {
        first[scratch->chosen[i] + 1]++;
    }
    step->num_groups = 0;
    for (int expert = 0; expert < experts; expert++) {
        const int count = first[expert + 1];
        if (count) {
            add_group(step, group_of_expert(block, expert), first[expert], count);
        }
        first[expert + 1] += first[expert];
    }
    for (int i = 0; i < pairs; i++) {
        const int slot = first[scratch->chosen[i]]++;
        scratch->slot_row[slot] = i / used;
        scratch->slot_weight[slot] = scratch->weights[i];
    }
    if (block->shared_gate) {
        const expert_group shared = {.expert = SHARED, .gate = *block->shared_gate, .up = *block->shared_up, .down = *block->shared_down};
        for (int row = 0; row < step->num_rows; row++) {
            scratch->slot_row[pairs + row] = row;
            scratch->slot_weight[pairs + row] = step->shared_logits ? step->shared_logits[row] : 1.0f;
        }
        add_group(step, shared, pairs, step->num_rows);
    }
    place_groups(step);
}

/* ---- the experts ---- */

/* Slots of the groups that are computed now. */
static int first_slot(const experts_step* step) { return step->scratch.groups[step->first_group].first_slot; }

static int count_slots(const experts_step* step) {
    const expert_group* last = &step->scratch.groups[step->end_group - 1];
    return last->first_slot + last->num_rows - first_slot(step);
}

static void prepare_slots(void* context, int chunk) {
    const experts_step* step = context;
    const int first = first_slot(step), count = count_slots(step), end = first + chunk_begin(count, chunk + 1, step->num_chunks);
    for (int slot = first + chunk_begin(count, chunk, step->num_chunks); slot < end; slot++) {
        const expert_group* group = &step->scratch.groups[step->scratch.slot_group[slot]];
        const int row = step->scratch.slot_row[slot], index = slot - group->first_slot;
        prepare_row_of(step, &group->gate, step->x, row, index, group->num_rows, group->gate_input);
        if (group->up_input != group->gate_input) {
            prepare_row_of(step, &group->up, step->x, row, index, group->num_rows, group->up_input);
        }
    }
}

static void prepare_gated(void* context, int chunk) {
    const experts_step* step = context;
    const int first = first_slot(step), count = count_slots(step), end = first + chunk_begin(count, chunk + 1, step->num_chunks);
    for (int slot = first + chunk_begin(count, chunk, step->num_chunks); slot < end; slot++) {
        const expert_group* group = &step->scratch.groups[step->scratch.slot_group[slot]];
        const int index = slot - group->first_slot;
        prepare_row_of(step, &group->down, group->gated, index, index, group->num_rows, group->down_input);
    }
}

static void gate_and_up(void* context, int chunk) {
    const experts_step* step = context;
    const expert_item* item = &step->scratch.items[chunk];
    const expert_group* group = &step->scratch.groups[item->group];
    const int width = group->gate.outputs, first = item->tile_begin * TILE_OUTPUTS;
    const int columns = min_int(item->tile_end * TILE_OUTPUTS, width) - first;
    const size_t ld = (size_t)width;
    step->kernels->matmul_tiles(&group->gate, group->gate_input, group->num_rows, group->gated, ld, item->tile_begin, item->tile_end);
    step->kernels->matmul_tiles(&group->up, group->up_input, group->num_rows, group->raised, ld, item->tile_begin, item->tile_end);
    for (int row = 0; row < group->num_rows; row++) {
        float *gate = group->gated + (size_t)row * ld + first, *up = group->raised + (size_t)row * ld + first;
        if (group->gate_bias) step->kernels->add_row(gate, group->gate_bias + first, columns);
        if (group->up_bias) step->kernels->add_row(up, group->up_bias + first, columns);
        step->kernels->activate_row(&step->block->activation, gate, up, columns);
    }
}

/* How long a group's tiles take, in rows of a tile. */
static int64_t work_of(const expert_group* group) { return (int64_t)whole_tiles(group->gate.outputs) * (group->num_rows + READING_ROWS); }

static int is_computed_now(const experts_step* step, int g) { return step->scratch.groups[g].comes == step->comes; }

/* Shares the groups out in items of about equal work; returns how many. */
static int make_items(experts_step* step) {
    const int64_t tile_macs = (int64_t)2 * TILE_OUTPUTS * step->block->gate->all.inputs;
    int64_t total = 0;
    int count = 0;
    for (int g = step->first_group; g < step->end_group; g++) {
        total += is_computed_now(step, g) ? work_of(&step->scratch.groups[g]) : 0;
    }
    const int64_t shared_out = total / (CHUNKS_PER_THREAD * step->num_threads), least = MACS_PER_CHUNK / tile_macs;
    const int64_t target = 1 + (shared_out > least ? shared_out : least);
    for (int g = step->first_group; g < step->end_group; g++) {
        if (!is_computed_now(step, g)) {
            continue;
        }
        const expert_group* group = &step->scratch.groups[g];
        const int tiles = whole_tiles(group->gate.outputs), steps = (tiles + TILE_STEP - 1) / TILE_STEP;
        const int64_t wanted = 1 + work_of(group) / target;
        const int parts = wanted < steps ? (int)wanted : steps;
        for (int part = 0; part < parts; part++) {
            const int begin = chunk_begin(steps, part, parts) * TILE_STEP, end = chunk_begin(steps, part + 1, parts) * TILE_STEP;
            step->scratch.items[count++] = (expert_item){g, begin, min_int(end, tiles)};
        }
    }
    return count;
}

/* The last product and the sums over experts, for the columns of some tiles. */
static void sum_experts(void* context, int chunk) {
    const experts_step* step = context;
    const int hidden = step->block->down->outputs, tiles = whole_tiles(hidden);
    const int begin = chunk_begin(tiles, chunk, step->num_chunks), end = chunk_begin(tiles, chunk + 1, step->num_chunks);
    const int first = begin * TILE_OUTPUTS, columns = min_int(end * TILE_OUTPUTS, hidden) - first;
    const size_t ld = (size_t)hidden;
    for (int row = 0; row < step->num_rows && step->first_group == 0; row++) {
        memset(step->out + (size_t)row * ld + first, 0, (size_t)columns * sizeof(float));
    }
    for (int g = step->first_group; g < step->end_group; g++) {
        const expert_group* group = &step->scratch.groups[g];
        step->kernels->matmul_tiles(&group->down, group->down_input, group->num_rows, step->scratch.outputs, ld, begin, end);
        for (int i = 0; i < group->num_rows; i++) {
            const int slot = group->first_slot + i;
            float *output = step->scratch.outputs + (size_t)i * ld + first, *sum = step->out + (size_t)step->scratch.slot_row[slot] * ld + first;
            if (group->down_bias) {
                step->kernels->add_row(output, group->down_bias + first, columns);
            }
            step->kernels->add_scaled_row(sum, output, step->scratch.slot_weight[slot], columns);
        }
    }
}

static int down_chunks(const experts_step* step) {
    const int tiles = whole_tiles(step->block->down->outputs);
    const int64_t macs = (int64_t)tiles * TILE_OUTPUTS * step->block->down->all.inputs * count_slots(step);
    return min_int(most_chunks(step, macs / MACS_PER_CHUNK), tiles);
}

static void run_gate_and_up(experts_step* step, int comes) {
    step->comes = comes;
    const int items = make_items(step);
    if (items) {
        run_chunks(step, items, gate_and_up);
    }
}

static void run_down(experts_step* step) {
    run_each(step, count_slots(step), prepare_gated);
    run_chunks(step, down_chunks(step), sum_experts);
}

/* What the groups that are computed now have of their experts' places. */
static int want_experts(experts_step* step) {
    const expert_block* block = step->block;
    const expert_places* places = block->gate->places;
    experts_scratch* scratch = &step->scratch;
    int count = 0;
    for (int g = step->first_group; g < step->end_group; g++) {
        if (scratch->groups[g].expert != SHARED) {
            scratch->wanted[count++] = scratch->groups[g].expert;
        }
    }
    if (places->want(places->context, scratch->wanted, count, scratch->is_there) != 0) {
        return -1;
    }
    for (int i = 0; i < count; i++) {
        expert_group* group = &scratch->groups[step->first_group + i];
        group->gate = stack_matrix(block->gate, group->expert);
        group->up = stack_matrix(block->up, group->expert);
        group->down = stack_matrix(block->down, group->expert);
        group->comes = !scratch->is_there[i];
    }
    return 0;
}

/* As many as may be wanted at once; the shared one, which is always there, with the last of them. */
static int run_coming(experts_step* step, int first_group) {
    const expert_places* places = step->block->gate->places;
    const int routed = step->num_groups - (step->block->shared_gate != NULL), end = min_int(first_group + places->most, routed);
    step->first_group = first_group;
    step->end_group = end < routed ? end : step->num_groups;
    if (want_experts(step) != 0) {
        return -1;
    }
    run_each(step, count_slots(step), prepare_slots);
    run_gate_and_up(step, 0);
    if (places->wait(places->context, 0) != 0) {
        return -1;
    }
    run_gate_and_up(step, 1);
    if (places->wait(places->context, 1) != 0) {
        return -1;
    }
    run_down(step);
    return 0;
}

static int run_all_coming(experts_step* step, float* out) {
    step->out = step->scratch.sums;
    for (int group = 0; group < step->num_groups; group = step->end_group) {
        if (run_coming(step, group) != 0) {
            return -1;
        }
    }
    memcpy(out, step->out, (size_t)step->num_rows * (size_t)step->block->down->outputs * sizeof(float));
    return 0;
}

int experts_run(const expert_block* block, const kernel_table* kernels, int num_threads, const experts_rows* rows, void* scratch) {
    experts_step step = {
        .block = block,
        .kernels = kernels,
        .num_threads = num_threads,
        .num_rows = rows->num_rows,
        .x = rows->x,
        .logits = rows->logits,
        .shared_logits = rows->shared_logits,
        .out = rows->out,
        .scratch = lay_out_scratch(block, rows->num_rows, scratch),
    };
    run_each(&step, step.num_rows, choose_rows);
    group_rows(&step);
    if (block->gate->places) {
        return run_all_coming(&step, rows->out);
    }
    step.end_group = step.num_groups;
    run_each(&step, count_slots(&step), prepare_slots);
    run_gate_and_up(&step, 0);
    run_down(&step);
    return 0;
}

/* ---- as a block of a stage ---- */

static float* lay_out_logits(const expert_block* block, int rows, scratch_cursor* cursor, float** shared_logits) {
    float* logits = take_scratch(cursor, (size_t)rows * (size_t)block->choice.num_experts * sizeof(float));
    *shared_logits = block->shared_router ? take_scratch(cursor, (size_t)rows * sizeof(float)) : NULL;
    return logits;
}

static void measure(const stage_layer* layer, int rows, scratch_need* need) {
    const expert_block* block = &layer->feed_forward.experts;
    scratch_cursor cursor = {0};
    float* shared_logits;
    lay_out_logits(block, rows, &cursor, &shared_logits);
    need_block(need, cursor.at + experts_scratch_bytes(block, rows));
    need_activations(need, rows, block->shared_router ? 2 : 1, (const packed_matrix*[]){block->router, block->shared_router});
}

static void run(phase* p) {
    const expert_block* block = &p->layer->feed_forward.experts;
    scratch_cursor cursor = {p->s->scratch.block, 0};
    experts_rows rows = {.num_rows = p->num_rows, .x = p->s->scratch.normed, .out = p->s->scratch.normed};
    rows.logits = lay_out_logits(block, p->num_rows, &cursor, &rows.shared_logits);
    const packed_matrix* const routers[] = {block->router, block->shared_router};
    use_matrices(p, p->s->spec.hidden_size, block->shared_router ? 2 : 1, routers, (float*[]){rows.logits, rows.shared_logits});
    take_input(p);
    multiply_all(p);
    p->has_failed = experts_run(block, p->kernels, p->s->num_threads, &rows, p->s->scratch.block + cursor.at) != 0;
    if (!p->has_failed) {
        add_normed(p);
    }
}

const block_kind EXPERT_FEED_FORWARD = {.measure = measure, .run = run};
