#define _GNU_SOURCE
#include "kv_cache.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static size_t whole_pages(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

/* Of this many blocks. -1: more than there are addresses. */
static int find_size(const kv_cache* cache, int num_blocks, size_t* size_bytes) {
    size_t padded;
    if (__builtin_mul_overflow(cache->block_bytes, (size_t)num_blocks, size_bytes) ||
        __builtin_add_overflow(*size_bytes, page_bytes(), &padded)) {
        return -1;
    }
    return 0;
}

static void* map_pages(size_t bytes) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

#ifdef MREMAP_MAYMOVE

static void* grow_pages(void* memory, size_t before, size_t after) { return mremap(memory, before, after, MREMAP_MAYMOVE); }

#else

/* Pages of zeros are left alone, so that they go on costing nothing. */
static void copy_pages(uint8_t* to, const uint8_t* from, size_t bytes) {
    const size_t page = page_bytes();
    for (size_t at = 0; at < bytes; at += page) {
        if (from[at] || memcmp(from + at, from + at + 1, page - 1) != 0) {
            memcpy(to + at, from + at, page);
        }
    }
}

static void* grow_pages(void* memory, size_t before, size_t after) {
    void* pages = map_pages(after);
    if (pages != MAP_FAILED) {
        copy_pages(pages, memory, before);
        munmap(memory, before);
    }
    return pages;
}

#endif

static int map_blocks(kv_cache* cache) {
    if (find_size(cache, cache->num_blocks, &cache->size_bytes) != 0) {
        return -1;
    }
    void* pages = map_pages(whole_pages(cache->size_bytes));
    if (pages == MAP_FAILED) {
        return -1;
    }
    cache->memory = pages;
    return 0;
}

int kv_cache_create_blocks(kv_cache* cache, int num_blocks, size_t block_bytes) {
    *cache = (kv_cache){.type = KV_F32, .num_blocks = num_blocks, .block_bytes = block_bytes};
    return map_blocks(cache);
}

int kv_cache_create(kv_cache* cache, kv_type type, int num_blocks, int block_tokens, int num_kv_heads, int key_dim, int value_dim) {
    *cache = (kv_cache){
        .type = type,
        .num_blocks = num_blocks,
        .block_tokens = block_tokens,
        .num_kv_heads = num_kv_heads,
        .key_dim = key_dim,
        .value_dim = value_dim,
        .value_stride = (value_dim + 15) / 16 * 16,
    };
    cache->head_bytes = kv_cache_values_offset(cache, block_tokens);
    cache->block_bytes = cache->head_bytes * (size_t)num_kv_heads;
    return map_blocks(cache);
}

int kv_cache_resize(kv_cache* cache, int num_blocks) {
    size_t size_bytes;
    if (find_size(cache, num_blocks, &size_bytes) != 0) {
        return -1;
    }
    const size_t before = whole_pages(cache->size_bytes), after = whole_pages(size_bytes);
    if (after > before) {
        void* pages = grow_pages(cache->memory, before, after);
        if (pages == MAP_FAILED) {
            return -1;
        }
        cache->memory = pages;
    } else if (after < before && munmap(cache->memory + after, before - after) != 0) {
        return -1;
    }
    if (size_bytes < cache->size_bytes) {
        memset(cache->memory + size_bytes, 0, after - size_bytes); /* blocks that come back later are zero */
    }
    cache->num_blocks = num_blocks;
    cache->size_bytes = size_bytes;
    return 0;
}

void kv_cache_free(kv_cache* cache) {
    if (cache->memory) {
        munmap(cache->memory, whole_pages(cache->size_bytes));
        cache->memory = NULL;
    }
}

size_t kv_cache_resident_bytes(const kv_cache* cache) {
    enum { PAGES_AT_ONCE = 4096 };
    unsigned char present[PAGES_AT_ONCE];
    const size_t page = page_bytes(), end = whole_pages(cache->size_bytes);
    size_t resident = 0;
    for (size_t at = 0; at < end; at += PAGES_AT_ONCE * page) {
        const size_t left = end - at, bytes = left < PAGES_AT_ONCE * page ? left : PAGES_AT_ONCE * page;
        if (mincore(cache->memory + at, bytes, (void*)present) == 0) {
            for (size_t i = 0; i < bytes / page; i++) {
                resident += present[i] & 1 ? page : 0;
            }
        }
    }
    return resident;
}
