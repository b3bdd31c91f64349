# KV caches and memories of states. Included by _kernels.pyx.
import math
from libc.stdint cimport int64_t
from libc.string cimport memcpy


cdef extern from "c/kv_cache.h" nogil:
    enum: KEY_GROUP
    ctypedef enum kv_type:
        KV_F16
        KV_F32
        KV_Q8_0
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
    int kv_cache_create_blocks(kv_cache* cache, int num_blocks, size_t block_bytes)
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
KV_ELEMENT_TYPES = ("F16", "F32", "Q8_0")


cdef class LayerMemory:
    """What a layer keeps of sequences, in blocks or slots."""

    cdef kv_cache cache
    cdef int num_users  # runs in progress, under the GIL; -1 while it is resized

    def __dealloc__(self):
        kv_cache_free(&self.cache)

    def resize(self, num_blocks: int) -> None:
        require_within(f"num_{self.block_word()}s", num_blocks, 1, 1 << 24)
        self.require_settled()
        if self.num_users > 0:
            raise RuntimeError("the KV cache is used by a run in progress and can't be resized until that has ended")
        cdef int c_blocks = num_blocks, status
        self.num_users = -1
        with nogil:
            status = kv_cache_resize(&self.cache, c_blocks)
        self.num_users = 0
        if status != 0:
            raise MemoryError(f"no memory for {num_blocks} {self.block_word()}s of {self.cache.block_bytes} bytes")

    cdef uint8_t* block(self, object block_id) except NULL:
        """Its memory, which stays where it is for as long as the GIL is held."""
        self.require_settled()
        require_within(f"{self.block_word()}_id", block_id, 0, self.cache.num_blocks - 1)
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

    cdef str block_word(self):
        return "block"

    cdef tuple shape(self):
        """To be compared with that of the layer's attention."""
        raise NotImplementedError


cdef class KvCache(LayerMemory):
    def __cinit__(self, num_blocks: int, block_tokens: int, num_kv_heads: int, key_dim: int, value_dim: int, element_type: str = "F16"):
        if element_type not in KV_ELEMENT_TYPES:
            raise ValueError(f"element_type is {element_type!r}, expected one of {', '.join(KV_ELEMENT_TYPES)}")
        for name, value in (("num_blocks", num_blocks), ("block_tokens", block_tokens), ("num_kv_heads", num_kv_heads)):
            require_within(name, value, 1, 1 << 24)
        require_within("key_dim", key_dim, 2, MAX_HEAD_DIM)
        require_within("value_dim", value_dim, 0, MAX_HEAD_DIM)
        if block_tokens % KEY_GROUP:
            raise ValueError(f"block_tokens is {block_tokens}, expected a multiple of {KEY_GROUP}")
        cdef kv_type c_type = <kv_type><int>KV_ELEMENT_TYPES.index(element_type)
        if kv_cache_create(&self.cache, c_type, num_blocks, block_tokens, num_kv_heads, key_dim, value_dim) != 0:
            raise MemoryError(f"no memory for a KV cache of {num_blocks} blocks of {block_tokens} tokens")

    def read_block(self, block_id: int) -> bytes:
        return (<char*>self.block(block_id))[: self.cache.block_bytes]

    def write_block(self, block_id: int, const uint8_t[::1] data not None) -> None:
        cdef uint8_t* block = self.block(block_id)
        if <size_t>data.shape[0] != self.cache.block_bytes:
            raise ValueError(f"data has {data.shape[0]} bytes, expected {self.cache.block_bytes}, the size of a block")
        memcpy(block, &data[0], self.cache.block_bytes)

    cdef tuple shape(self):
        return (self.cache.num_kv_heads, self.cache.key_dim, self.cache.value_dim)

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


cdef class StateMemory(LayerMemory):
    """Room for the states of sequences in one layer, slot after slot."""

    def __cinit__(self, num_slots: int, state_numbers: int):
        require_within("num_slots", num_slots, 1, 1 << 24)
        require_within("state_numbers", state_numbers, 16, 1 << 40)
        if state_numbers % 16:
            raise ValueError(f"state_numbers is {state_numbers}, expected a multiple of 16")
        if kv_cache_create_blocks(&self.cache, num_slots, <size_t>state_numbers * sizeof(float)) != 0:
            raise MemoryError(f"no memory for {num_slots} states of {state_numbers} numbers")

    def read(self, slot: int, offset: int, size: int) -> bytes:
        self.require_part(offset, size)
        return (<char*>self.block(slot) + <size_t>offset)[: <Py_ssize_t>size]

    def write(self, slot: int, offset: int, const uint8_t[::1] data not None) -> None:
        self.require_part(offset, data.shape[0])
        if data.shape[0]:
            memcpy(self.block(slot) + <size_t>offset, &data[0], data.shape[0])

    cdef int require_part(self, object offset, object size) except -1:
        require_within("offset", offset, 0, self.cache.block_bytes)
        return require_within("the number of bytes", size, 0, self.cache.block_bytes - <size_t>offset)

    @property
    def num_slots(self) -> int:
        return self.cache.num_blocks

    @property
    def state_bytes(self) -> int:
        return self.cache.block_bytes

    cdef str block_word(self):
        return "slot"

    cdef tuple shape(self):
        return (self.cache.block_bytes // sizeof(float),)
