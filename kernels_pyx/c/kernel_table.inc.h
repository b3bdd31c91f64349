/* All kernels for the lanes that stand before it, and their table: the kernel_table KERNELS, with the name ISA. Included by each isa_*.c. */
#include "integers.h"
#include "quantize.inc.h"

#include "unpack.inc.h"
#include "matmul.inc.h"
#include "wire.inc.h"
#include "elementwise.inc.h"
#include "experts.inc.h"
#include "attention.inc.h"
#include "linear.inc.h"

const kernel_table KERNELS = {
    .name = ISA,
    .prepare_activations = prepare_activations,
    .matmul_tiles = matmul_tiles,
    .quantize_q8_0 = quantize_q8_0,
    .encode_row = encode_row,
    .decode_row = decode_row,
    .round_row = round_row,
    .fmas_per_round = FLOAT_ROWS * 16,
    .fma_rounds = fma_rounds,
    .exp_row = exp_row,
    .norm_row = norm_row,
    .add_row = add_row,
    .add_scaled_row = add_scaled_row,
    .scale_row = scale_row,
    .activate_row = activate_row,
    .sigmoid_gate_row = sigmoid_gate_row,
    .rope_row = rope_row,
    .log_softmax_row = log_softmax_row,
    .softmax_row = softmax_row,
    .sigmoid_row = sigmoid_row,
    .sum_row = sum_row,
    .store_position = store_position,
    .attention = attention,
    .linear_convolve = linear_convolve,
    .linear_prepare_row = linear_prepare_row,
    .linear_recur = linear_recur,
    .linear_finish_row = linear_finish_row,
};
