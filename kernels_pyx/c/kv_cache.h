/* Keys and values of past positions of one layer, f16, f32 or quantised, in blocks of `block_tokens` positions that a sequence's block table
   names.

   Block after block, in each head after head: first the keys, in groups of 16 positions [key_dim][16], so that positions lie across lanes;
   then the values, in groups of 16 positions [16][value_stride], so that the head's numbers lie across lanes (value_stride is value_dim rounded
   up to 16; what is past value_dim counts for nothing). A quantised group has int8 in these places; before them it has a scale in f16 for every
   32 numbers (or what is left at the end) of each position, [scales][16]. Blocks travel between machines in this form: whoever changes it
   changes the protocol's version. */
#ifndef DAIRLLM_KV_CACHE_H
#define DAIRLLM_KV_CACHE_H

#include <stddef.h>
#include <stdint.h>

enum { KEY_GROUP = 16 };

typedef enum kv_type { KV_F16, KV_F32, KV_Q8_0 } kv_type;

static inline size_t kv_element_bytes(kv_type type) { return type == KV_F32 ? sizeof(float) : type == KV_F16 ? sizeof(uint16_t) : sizeof(int8_t); }

/* Of a quantised group with so many numbers of each position, in front of them. */
static inline size_t kv_scales_bytes(int numbers) { return (size_t)(numbers + 31) / 32 * KEY_GROUP * sizeof(uint16_t); }

static inline size_t kv_group_bytes(kv_type type, int numbers) {
    return (size_t)numbers * KEY_GROUP * kv_element_bytes(type) + (type == KV_Q8_0 ? kv_scales_bytes(numbers) : 0);
}

typedef struct kv_cache {
    kv_type type;
    int num_blocks, block_tokens, num_kv_heads, key_dim, value_dim, value_stride;
    size_t head_bytes, block_bytes, size_bytes;
    uint8_t* memory;
} kv_cache;

/* 0, or -1 if there is no memory. block_tokens is a multiple of 16. Pages are zero and cost no memory until they are written. */
int kv_cache_create(kv_cache* cache, kv_type type, int num_blocks, int block_tokens, int num_kv_heads, int key_dim, int value_dim);
/* The same with blocks of something else: states (linear.h). */
int kv_cache_create_blocks(kv_cache* cache, int num_blocks, size_t block_bytes);
/* 0, or -1 if there is no memory, the cache being as before. Blocks below both sizes keep their content, new ones are zero; `memory` may move. */
int kv_cache_resize(kv_cache* cache, int num_blocks);
void kv_cache_free(kv_cache* cache);
/* Of the pages that are in memory now. */
size_t kv_cache_resident_bytes(const kv_cache* cache);

static inline uint8_t* kv_cache_block(const kv_cache* cache, int block) { return cache->memory + (size_t)block * cache->block_bytes; }

static inline uint8_t* kv_cache_head(const kv_cache* cache, int block, int kv_head) {
    return kv_cache_block(cache, block) + (size_t)kv_head * cache->head_bytes;
}

/* The group of a position of the block, in what kv_cache_head gives. */
static inline size_t kv_cache_keys_offset(const kv_cache* cache, int position) {
    return (size_t)(position / KEY_GROUP) * kv_group_bytes(cache->type, cache->key_dim);
}

static inline size_t kv_cache_values_offset(const kv_cache* cache, int position) {
    return kv_cache_keys_offset(cache, cache->block_tokens) + (size_t)(position / KEY_GROUP) * kv_group_bytes(cache->type, cache->value_stride);
}

#endif
