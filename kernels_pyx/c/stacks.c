#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "stacks.h"

#include <sys/mman.h>
#include <unistd.h>

#include "packing.h"

void packed_stack_describe(packed_stack* stack, int format, int num_matrices, int outputs, int inputs) {
    stack->num_matrices = num_matrices;
    stack->outputs = outputs;
    stack->places = NULL;
    stack->offset = 0;
    packed_matrix_describe(&stack->all, format, num_matrices * whole_tiles(outputs) * TILE_OUTPUTS, inputs);
}

void packed_stack_free(packed_stack* stack) { packed_matrix_free(&stack->all); }

packed_matrix stack_matrix(const packed_stack* stack, int index) {
    packed_matrix matrix = stack->all;
    matrix.outputs = stack->outputs;
    if (stack->places) {
        uint8_t* place = stack->places->at[index];
        matrix.tiles = place ? place + stack->offset : NULL;
    } else {
        matrix.tiles += (size_t)index * (size_t)whole_tiles(stack->outputs) * matrix.tile_bytes;
    }
    return matrix;
}

void pack_stack_rows(packed_stack* stack, int index, int first_row, int num_rows, const uint8_t* rows) {
    packed_matrix matrix = stack_matrix(stack, index);
    pack_rows(&matrix, first_row, num_rows, rows);
}

size_t stack_resident_bytes(const packed_stack* stack) {
    enum { PAGES_AT_ONCE = 4096 };
    unsigned char present[PAGES_AT_ONCE];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), end = packed_matrix_bytes(&stack->all);
    size_t resident = 0;
    for (size_t at = 0; at < end; at += PAGES_AT_ONCE * page) {
        const size_t left = (end - at + page - 1) / page, pages = left < PAGES_AT_ONCE ? left : PAGES_AT_ONCE;
        if (mincore(stack->all.tiles + at, pages * page, (void*)present) == 0) {
            for (size_t i = 0; i < pages; i++) {
                resident += present[i] & 1 ? page : 0;
            }
        }
    }
    return resident;
}
