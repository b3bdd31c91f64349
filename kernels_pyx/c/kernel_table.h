/* What one instruction set offers to the rest: a table of functions, filled once per instruction set from the same templates.
   All tables give the same bits for the same arguments (finite numbers; where a NaN results, it is a NaN in all of them). */
#ifndef DAIRLLM_KERNEL_TABLE_H
#define DAIRLLM_KERNEL_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "block_formats.h"
#include "elementwise.h"

/* A matrix [outputs, inputs] in tiles of 16 outputs (packing.h tells the layout); bits past the last output are zero. */
typedef struct packed_matrix {
    int format;
    int outputs, inputs;
    size_t tile_bytes;
    uint8_t* tiles; /* 64-byte aligned */
    size_t mapped_bytes; /* 0: the memory belongs to somebody else */
} packed_matrix;

static inline int whole_tiles(int outputs) { return (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS; }
static inline int num_tiles(const packed_matrix* w) { return whole_tiles(w->outputs); }

/* Encodings of activations on the wire, numbered as in the protocol less one. */
enum { ENCODING_F32, ENCODING_F16, ENCODING_Q8_0, ENCODING_Q8_0_OUTLIERS, NUM_ENCODINGS };

struct kv_cache;
struct attention_task;
struct linear_shape;
struct linear_task;

typedef struct kernel_table {
    const char* name;

    /* Fill rows [rows_begin, rows_end) of the activation buffer of a matmul of `rows` rows, from x[row * ldx + input]. The
       buffer has activation_bytes(...) bytes; only the matmul_tiles of the same table understands it. */
    void (*prepare_activations)(int format, const float* x, size_t ldx, int rows_begin, int rows_end, int rows, int inputs, void* act);
    /* y[row * ldy + output] for all rows and the outputs of tiles [tile_begin, tile_end); writes no output past the last. */
    void (*matmul_tiles)(const packed_matrix* w, const void* act, int rows, float* y, size_t ldy, int tile_begin, int tile_end);

    void (*quantize_q8_0)(const float* x, size_t num_blocks, uint8_t* out);
    /* Wire encodings of one row of `width` numbers; sizes in wire.h. */
    void (*encode_row)(int encoding, const float* x, int width, uint8_t* out);
    void (*decode_row)(int encoding, const uint8_t* in, int width, float* out);
    /* In place what encode_row and decode_row would give. */
    void (*round_row)(int encoding, float* x, int width);

    /* elementwise.inc.h, experts.inc.h, attention.inc.h */
    int fmas_per_round;
    float (*fma_rounds)(int rounds);
    void (*exp_row)(const float* x, int width, float* out);
    void (*norm_row)(const norm_spec* norm, const float* x, int width, float* out);
    void (*add_row)(float* x, const float* y, int width);
    void (*add_scaled_row)(float* x, const float* y, float scale, int width);
    void (*scale_row)(float* x, float scale, float softcap, int width);
    void (*activate_row)(const activation_spec* activation, float* gate, const float* up, int width);
    void (*sigmoid_gate_row)(float* x, const float* gate, int width);
    void (*rope_row)(float* x, int num_heads, int stride, int rope_dim, int interleaved, const float* cosines, const float* sines);
    void (*log_softmax_row)(const float* x, int width, float* out);
    void (*softmax_row)(float* x, int width);
    void (*sigmoid_row)(float* x, int width);
    float (*sum_row)(const float* x, int width);
    void (*store_position)(const struct kv_cache* cache, int block, int within, const float* keys, const float* values);
    void (*attention)(const struct attention_task* task);

    /* linear.inc.h */
    void (*linear_convolve)(const struct linear_task* task, int first_channel, int end_channel);
    void (*linear_prepare_row)(
        const struct linear_shape* shape, const float* decay, const float* bias, float* mixed, float* alpha, float* beta
    );
    void (*linear_recur)(const struct linear_task* task, int head, int part);
    void (*linear_finish_row)(const struct linear_shape* shape, const norm_spec* norm, float* out, float* gate);
} kernel_table;

extern const kernel_table kernels_scalar;
#if defined(__x86_64__)
extern const kernel_table kernels_avx2;
extern const kernel_table kernels_avxvnni;
extern const kernel_table kernels_avx512vnni;
#elif defined(__aarch64__)
extern const kernel_table kernels_neon;
extern const kernel_table kernels_neondot;
extern const kernel_table kernels_neoni8mm;
#endif

/* Rows of a packed_matrix back as floats: dequantize_row in packing.h, the same for every table. */

/* Scratch for prepare_activations, the same for every table. */
size_t activation_bytes(int format, int rows, int inputs);

/* dispatch.c */
enum { MAX_ISAS = 7 };
int num_available_isas(void);              /* those that this CPU can run, slowest first; at least 1 */
const char* available_isa(int index);
int select_isa(const char* cap);           /* use the best that is available and not above `cap` (NULL: no cap); -1: no such name */
const kernel_table* active_kernels(void);  /* never NULL */
int cpu_features(const char** names, int capacity); /* those of interest that the CPU has; returns how many */

#endif
