# KV caches. Included by _kernels.pyx.
import math
from libc.stdint cimport int64_t
from libc.string cimport memcpy


cdef extern from "c/kv_cache.h" nogil:
    enum: KEY_GROUP
    ctypedef enum kv_type:
        KV_F16
        KV_F32
    ctypedef struct kv_cache:
        kv_type type
        int num_blocks
        int block_tokens
        int num_kv_heads
        int key_dim
        int value_dim
        size_t block_bytes
        size_t size_bytes
    int kv_cache_create(kv_cache* cache, kv_type type, int num_blocks, int block_tokens, int num_kv_heads, int key_dim, int value_dim)
    int kv_cache_resize(kv_cache* cache, int num_blocks)
    void kv_cache_free(kv_cache* cache)
    size_t kv_cache_resident_bytes(const kv_cache* cache)
    uint8_t* kv_cache_block(const kv_cache* cache, int block)

cdef extern from "c/attention.h" nogil:
    enum: MAX_HEAD_DIM


cdef int require_within(str name, object value, int64_t least, int64_t most) except -1:
    if not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected an integer from {least} to {most}")
    return 0


cdef int require_positive(str name, double value) except -1:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}, expected a positive finite number")
    return 0


# The place of a name is its kv_type.
KV_ELEMENT_TYPES = ("F16", "F32")


cdef class KvCache:
    cdef kv_cache cache
    cdef int num_users  # runs in progress, under the GIL; -1 while it is resized

    def __cinit__(self, num_blocks: int, block_tokens: int, num_kv_heads: int, key_dim: int, value_dim: int, element_type: str = "F16"):
        if element_type not in KV_ELEMENT_TYPES:
            raise ValueError(f"element_type is {element_type!r}, expected one of {', '.join(KV_ELEMENT_TYPES)}")
        for name, value in (("num_blocks", num_blocks), ("block_tokens", block_tokens), ("num_kv_heads", num_kv_heads)):
            require_within(name, value, 1, 1 << 24)
        for name, value in (("key_dim", key_dim), ("value_dim", value_dim)):
            require_within(name, value, 2, MAX_HEAD_DIM)
        if block_tokens % KEY_GROUP:
            raise ValueError(f"block_tokens is {block_tokens}, expected a multiple of {KEY_GROUP}")
        cdef kv_type c_type = <kv_type><int>KV_ELEMENT_TYPES.index(element_type)
        if kv_cache_create(&self.cache, c_type, num_blocks, block_tokens, num_kv_heads, key_dim, value_dim) != 0:
            raise MemoryError(f"no memory for a KV cache of {num_blocks} blocks of {block_tokens} tokens")

    def __dealloc__(self):
        kv_cache_free(&self.cache)

    def resize(self, num_blocks: int) -> None:
        require_within("num_blocks", num_blocks, 1, 1 << 24)
        self.require_settled()
        if self.num_users > 0:
            raise RuntimeError("the KV cache is used by a run in progress and can't be resized until that has ended")
        cdef int c_blocks = num_blocks, status
        self.num_users = -1
        with nogil:
            status = kv_cache_resize(&self.cache, c_blocks)
        self.num_users = 0
        if status != 0:
            raise MemoryError(f"no memory for a KV cache of {num_blocks} blocks of {self.cache.block_tokens} tokens")

    def read_block(self, block_id: int) -> bytes:
        return (<char*>self.block(block_id))[: self.cache.block_bytes]

    def write_block(self, block_id: int, const uint8_t[::1] data not None) -> None:
        cdef uint8_t* block = self.block(block_id)
        if <size_t>data.shape[0] != self.cache.block_bytes:
            raise ValueError(f"data has {data.shape[0]} bytes, expected {self.cache.block_bytes}, the size of a block")
        memcpy(block, &data[0], self.cache.block_bytes)

    cdef uint8_t* block(self, object block_id) except NULL:
        """Its memory, which stays where it is for as long as the GIL is held."""
        self.require_settled()
        require_within("block_id", block_id, 0, self.cache.num_blocks - 1)
        return kv_cache_block(&self.cache, block_id)

    cdef int require_settled(self) except -1:
        if self.num_users < 0:
            raise RuntimeError("the KV cache is being resized by another thread and can't be used until that has ended")
        return 0

    @property
    def resident_bytes(self) -> int:
        self.require_settled()
        return kv_cache_resident_bytes(&self.cache)

    @property
    def size_bytes(self) -> int:
        return self.cache.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.cache.block_bytes

    @property
    def num_blocks(self) -> int:
        return self.cache.num_blocks

    @property
    def block_tokens(self) -> int:
        return self.cache.block_tokens

    @property
    def num_kv_heads(self) -> int:
        return self.cache.num_kv_heads

    @property
    def key_dim(self) -> int:
        return self.cache.key_dim

    @property
    def value_dim(self) -> int:
        return self.cache.value_dim

    @property
    def element_type(self) -> str:
        return KV_ELEMENT_TYPES[self.cache.type]
