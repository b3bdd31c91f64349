#define _GNU_SOURCE
#include "kv_cache.h"

#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

int kv_cache_create(kv_cache* cache, kv_type type, int num_layers, int num_blocks, int block_tokens, int num_kv_heads, int head_dim) {
    *cache = (kv_cache){
        .type = type,
        .num_layers = num_layers,
        .num_blocks = num_blocks,
        .block_tokens = block_tokens,
        .num_kv_heads = num_kv_heads,
        .head_dim = head_dim,
        .value_stride = (head_dim + 15) / 16 * 16,
    };
    cache->head_bytes = (size_t)block_tokens * (size_t)(head_dim + cache->value_stride) * kv_element_bytes(type);
    cache->block_bytes = cache->head_bytes * (size_t)num_kv_heads;
    if (__builtin_mul_overflow(cache->block_bytes, (size_t)num_blocks, &cache->layer_bytes) ||
        __builtin_mul_overflow(cache->layer_bytes, (size_t)num_layers, &cache->size_bytes)) {
        return -1;
    }
    void* pages = mmap(NULL, cache->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) {
        return -1;
    }
    cache->memory = pages;
    return 0;
}

void kv_cache_free(kv_cache* cache) {
    if (cache->memory) {
        munmap(cache->memory, cache->size_bytes);
        cache->memory = NULL;
    }
}
