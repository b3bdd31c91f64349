/* The thread pool of the process: fork-join over small chunks that whichever thread is free takes, so that a
   thread that lost its core to another program holds up nobody but its own chunk.

   The caller works too. Workers spin for some tens of microseconds after a run, since the next phase of a stage
   follows at once, and then park. A second caller while the pool is busy (and a chunk that runs a pool itself)
   computes its chunks alone; by the rules of the kernels this never changes a result.
   A child after fork has an empty pool, which starts its own workers at the first run. */
#ifndef DAIRLLM_POOL_H
#define DAIRLLM_POOL_H

typedef struct pool_t pool_t;
typedef void (*pool_function)(void* context, int chunk);

#define POOL_MAX_THREADS 256

pool_t* pool_shared(void);                       /* the one pool; never NULL */
int pool_num_threads(pool_t* pool);              /* callers plus workers that a run may use */
int pool_set_num_threads(pool_t* pool, int num_threads);   /* 0, or -1 outside 1..POOL_MAX_THREADS; waits for a run in progress, ends its workers */
int pool_cores_of_cgroups(const char* root);    /* of the CPU quotas of our control groups, rounded up; root: before /proc and /sys, for tests */
int pool_default_num_threads(void);              /* min(cores of the affinity mask, cgroup CPU quota rounded up) */

void pool_run(pool_t* pool, int num_chunks, pool_function function, void* context);
/* As pool_run, with at most max_threads threads: pool_thread_index() < max_threads in every chunk. */
void pool_run_limited(pool_t* pool, int num_chunks, int max_threads, pool_function function, void* context);
int pool_thread_index(void);                     /* 0 for a caller, 1, 2, ... for the workers */

#endif
