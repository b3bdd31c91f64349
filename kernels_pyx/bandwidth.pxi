# Speed of the memory. Included by _kernels.pyx.


cdef extern from "c/bandwidth.h" nogil:
    int memory_read_seconds(size_t size_bytes, int num_passes, double* seconds)

cdef enum:
    MIB = 1 << 20
    MAX_PASSES = 64


def memory_read_bandwidth(size_bytes: int, passes: int = 5) -> float:
    if not MIB <= size_bytes <= 1 << 36 or size_bytes % MIB:
        raise ValueError(f"size_bytes is {size_bytes}, expected a multiple of 1 MiB up to 64 GiB")
    if not 1 <= passes <= MAX_PASSES:
        raise ValueError(f"passes is {passes}, expected 1 to {MAX_PASSES}")
    cdef double seconds[MAX_PASSES]
    cdef size_t size = size_bytes
    cdef int count = passes, failed
    with nogil:
        failed = memory_read_seconds(size, count, seconds)
    if failed:
        raise MemoryError(f"no memory for a buffer of {size_bytes} bytes")
    return size_bytes / float(np.median([seconds[i] for i in range(count)]))
