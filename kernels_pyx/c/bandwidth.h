/* How fast the memory can be read: the limit that decoding is compared with. */
#ifndef DAIRLLM_BANDWIDTH_H
#define DAIRLLM_BANDWIDTH_H

#include <stddef.h>

/* Reads a buffer of size_bytes (a multiple of 1 MiB, larger than the caches) with all threads of the shared pool, num_passes times after
   one that is not counted, and writes the seconds of each pass. Returns 0, or -1 if there is no memory. */
int memory_read_seconds(size_t size_bytes, int num_passes, double* seconds);

#endif
