#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif

#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 40000
#define STACK_BYTES (1 << 20)
#define MAX_PATH 4096

/* A worker that held up a run for longer than STALL_NS and STALL_CHUNKS chunks of ordinary length lost its core to another program. It then
   sits out for a while, twice as long each time that it soon happens again: a phase of a decoding stage takes 25 us, a scheduler's time slice
   some milliseconds, so that a worker on a busy core costs far more than it brings. Shorter stalls are the rule where a client or the
   coordinator runs on the same machine and wakes up with every token: who sits out for those is hardly ever there. */
#define STALL_NS 4000000
#define STALL_CHUNKS 4
#define SHORTEST_BENCH_NS 16000000
#define LONGEST_BENCH_NS 1024000000
#define BENCH_NAP_NS 4000000

/* `ticket` holds (generation << 32 | chunks not yet taken). A thread takes a chunk by lowering the ticket that it
   read by one. Success proves that the generation was unfinished from its reading to that moment, and the job's
   fields change only between generations: so they, read in between, belong to it. */
typedef struct {
    _Atomic int computing;
    _Atomic int64_t benched_until_ns;
    int64_t bench_ns;                       /* the last one's length; under `caller` */
    char pad[64];
} worker_state;

struct pool_t {
    _Atomic uint64_t ticket;
    _Atomic(pool_function) function;
    _Atomic(void*) context;
    _Atomic int num_chunks, max_threads;
    char pad0[64];
    _Atomic int finished_chunks;
    char pad1[64];
    _Atomic int parked_workers, caller_parked, stopping;
    pthread_mutex_t caller;                 /* held by the thread that runs, or that changes the workers */
    pthread_mutex_t parking;
    pthread_cond_t work_published, work_finished;
    pthread_t workers[POOL_MAX_THREADS];
    worker_state states[POOL_MAX_THREADS];  /* by thread index */
    int num_workers;                        /* started; under `caller` */
    _Atomic int num_threads;
};

static pool_t shared;
static pthread_once_t shared_once = PTHREAD_ONCE_INIT;
static _Thread_local int thread_index;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- taking chunks ---- */

/* Returns how many chunks this thread computed. */
static int take_chunks(pool_t* pool) {
    int taken = 0;
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while ((uint32_t)ticket != 0) {
        pool_function function = atomic_load_explicit(&pool->function, memory_order_relaxed);
        void* context = atomic_load_explicit(&pool->context, memory_order_relaxed);
        int num_chunks = atomic_load_explicit(&pool->num_chunks, memory_order_relaxed);
        if (thread_index >= atomic_load_explicit(&pool->max_threads, memory_order_relaxed)) return taken;
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket - 1, memory_order_acq_rel, memory_order_acquire)) continue;
        atomic_store_explicit(&pool->states[thread_index].computing, 1, memory_order_relaxed);
        function(context, num_chunks - (int)(uint32_t)ticket);
        atomic_store_explicit(&pool->states[thread_index].computing, 0, memory_order_relaxed);
        taken++;
        if (atomic_fetch_add(&pool->finished_chunks, 1) + 1 == num_chunks && atomic_load(&pool->caller_parked)) {
            pthread_mutex_lock(&pool->parking);
            pthread_cond_broadcast(&pool->work_finished);
            pthread_mutex_unlock(&pool->parking);
        }
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
    return taken;
}

static void bench_worker(worker_state* state, int64_t now) {
    const int64_t free_since = atomic_load(&state->benched_until_ns);
    const int64_t longer = 2 * state->bench_ns;
    const int soon_again = now - free_since < 8 * state->bench_ns;
    state->bench_ns = !soon_again ? SHORTEST_BENCH_NS : longer < LONGEST_BENCH_NS ? longer : LONGEST_BENCH_NS;
    atomic_store(&state->benched_until_ns, now + state->bench_ns);
}

static void park_until_finished(pool_t* pool, int num_chunks, int64_t started_waiting, int64_t patience_ns) {
    unsigned char computing[POOL_MAX_THREADS];
    for (int i = 0; i <= pool->num_workers; i++) computing[i] = (unsigned char)atomic_load(&pool->states[i].computing);
    pthread_mutex_lock(&pool->parking);
    atomic_store(&pool->caller_parked, 1);
    while (atomic_load(&pool->finished_chunks) != num_chunks) pthread_cond_wait(&pool->work_finished, &pool->parking);
    atomic_store(&pool->caller_parked, 0);
    pthread_mutex_unlock(&pool->parking);
    const int64_t now = now_ns();
    if (now - started_waiting < patience_ns) return;
    for (int i = 1; i <= pool->num_workers; i++)
        if (computing[i]) bench_worker(&pool->states[i], now);
}

static void wait_for_last_chunks(pool_t* pool, int num_chunks, int64_t patience_ns) {
    int64_t started_waiting = 0;
    for (int spins = 0; atomic_load_explicit(&pool->finished_chunks, memory_order_acquire) != num_chunks; spins++) {
        relax();
        if (spins % 64 != 63) continue;
        int64_t now = now_ns();
        if (started_waiting == 0) started_waiting = now;
        if (now < started_waiting + SPIN_NS) continue;
        park_until_finished(pool, num_chunks, started_waiting, patience_ns);
        return;
    }
}

/* ---- workers ---- */

static int has_news(pool_t* pool, uint32_t generation) {
    return (uint32_t)(atomic_load(&pool->ticket) >> 32) != generation || atomic_load(&pool->stopping);
}

static void wait_for_news(pool_t* pool, uint32_t generation) {
    int64_t deadline = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (has_news(pool, generation)) return;
            relax();
        }
    } while (now_ns() < deadline);
    pthread_mutex_lock(&pool->parking);
    atomic_fetch_add(&pool->parked_workers, 1);
    while (!has_news(pool, generation)) pthread_cond_wait(&pool->work_published, &pool->parking);
    atomic_fetch_sub(&pool->parked_workers, 1);
    pthread_mutex_unlock(&pool->parking);
}

/* In naps, so that a worker that is to end does so soon. */
static void sit_out(pool_t* pool) {
    const struct timespec nap = {0, BENCH_NAP_NS};
    while (now_ns() < atomic_load(&pool->states[thread_index].benched_until_ns) && !atomic_load(&pool->stopping)) nanosleep(&nap, NULL);
}

static void* work(void* argument) {
    pool_t* pool = &shared;
    thread_index = (int)(intptr_t)argument;
    while (!atomic_load(&pool->stopping)) {
        uint32_t generation = (uint32_t)(atomic_load(&pool->ticket) >> 32);
        take_chunks(pool);
        if (atomic_load_explicit(&pool->states[thread_index].benched_until_ns, memory_order_relaxed) != 0) sit_out(pool);
        wait_for_news(pool, generation);
    }
    return NULL;
}

static void wake_workers(pool_t* pool) {
    pthread_mutex_lock(&pool->parking);
    pthread_cond_broadcast(&pool->work_published);
    pthread_mutex_unlock(&pool->parking);
}

/* A machine that refuses another thread costs speed, not the run. */
static void start_workers(pool_t* pool) {
    int wanted = atomic_load(&pool->num_threads) - 1;
    if (pool->num_workers == wanted) return;
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);   /* signals belong to the threads of the program */
    while (pool->num_workers < wanted) {
        void* index = (void*)(intptr_t)(pool->num_workers + 1);
        if (pthread_create(&pool->workers[pool->num_workers], &attributes, work, index) != 0) break;
        pool->num_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static void reset_states(pool_t* pool) {
    for (int i = 0; i < POOL_MAX_THREADS; i++) {
        atomic_store(&pool->states[i].computing, 0);
        atomic_store(&pool->states[i].benched_until_ns, 0);
        pool->states[i].bench_ns = 0;
    }
}

static void stop_workers(pool_t* pool) {
    atomic_store(&pool->stopping, 1);
    wake_workers(pool);
    for (int i = 0; i < pool->num_workers; i++) pthread_join(pool->workers[i], NULL);
    pool->num_workers = 0;
    atomic_store(&pool->stopping, 0);
    reset_states(pool);
}

/* ---- the shared pool ---- */

static void make_idle(pool_t* pool) {
    pthread_mutex_init(&pool->caller, NULL);
    pthread_mutex_init(&pool->parking, NULL);
    pthread_cond_init(&pool->work_published, NULL);
    pthread_cond_init(&pool->work_finished, NULL);
    atomic_store(&pool->ticket, (atomic_load(&pool->ticket) >> 32) << 32);
    atomic_store(&pool->parked_workers, 0);
    atomic_store(&pool->caller_parked, 0);
    atomic_store(&pool->stopping, 0);
    pool->num_workers = 0;
    reset_states(pool);
}

static void forget_workers_in_child(void) {
    thread_index = 0;
    make_idle(&shared);
}

static void make_shared(void) {
    make_idle(&shared);
    int num_threads = pool_default_num_threads();
    atomic_store(&shared.num_threads, num_threads);
    pthread_atfork(NULL, NULL, forget_workers_in_child);
}

pool_t* pool_shared(void) {
    pthread_once(&shared_once, make_shared);
    return &shared;
}

int pool_num_threads(pool_t* pool) { return atomic_load(&pool->num_threads); }

int pool_set_num_threads(pool_t* pool, int num_threads) {
    if (num_threads < 1 || num_threads > POOL_MAX_THREADS) return -1;
    pthread_mutex_lock(&pool->caller);
    if (num_threads != atomic_load(&pool->num_threads)) stop_workers(pool);
    atomic_store(&pool->num_threads, num_threads);
    pthread_mutex_unlock(&pool->caller);
    return 0;
}

int pool_thread_index(void) { return thread_index; }

/* A worker that runs a pool inside a chunk keeps its index: its chunk was promised index < max_threads. */
static void run_alone(int num_chunks, pool_function function, void* context) {
    for (int chunk = 0; chunk < num_chunks; chunk++) function(context, chunk);
}

void pool_run_limited(pool_t* pool, int num_chunks, int max_threads, pool_function function, void* context) {
    if (num_chunks <= 1 || max_threads <= 1 || atomic_load_explicit(&pool->num_threads, memory_order_relaxed) == 1 ||
        pthread_mutex_trylock(&pool->caller) != 0) {
        run_alone(num_chunks, function, context);
        return;
    }
    start_workers(pool);
    atomic_store_explicit(&pool->function, function, memory_order_relaxed);
    atomic_store_explicit(&pool->context, context, memory_order_relaxed);
    atomic_store_explicit(&pool->num_chunks, num_chunks, memory_order_relaxed);
    atomic_store_explicit(&pool->max_threads, max_threads, memory_order_relaxed);
    atomic_store_explicit(&pool->finished_chunks, 0, memory_order_relaxed);
    uint64_t generation = (atomic_load_explicit(&pool->ticket, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool->ticket, generation << 32 | (uint32_t)num_chunks);
    if (atomic_load(&pool->parked_workers) > 0) wake_workers(pool);
    int64_t started = now_ns();
    int taken = take_chunks(pool);
    if (atomic_load_explicit(&pool->finished_chunks, memory_order_acquire) != num_chunks) {
        int64_t patience = taken == 0 ? STALL_NS : (now_ns() - started) / taken * STALL_CHUNKS;
        wait_for_last_chunks(pool, num_chunks, patience < STALL_NS ? STALL_NS : patience);
    }
    pthread_mutex_unlock(&pool->caller);
}

void pool_run(pool_t* pool, int num_chunks, pool_function function, void* context) {
    pool_run_limited(pool, num_chunks, POOL_MAX_THREADS, function, context);
}

/* ---- how many cores there are for us ---- */

static int cores_of_affinity_mask(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : (int)cores;
}

static int read_line(const char* path, char* line, int size) {
    FILE* file = fopen(path, "r");
    if (file == NULL) return 0;
    char* got = fgets(line, size, file);
    fclose(file);
    return got != NULL;
}

static int cores_of_quota(double quota, double period) {
    if (quota <= 0 || period <= 0) return POOL_MAX_THREADS;
    double cores = quota / period;
    if (cores >= POOL_MAX_THREADS) return POOL_MAX_THREADS;
    int whole = (int)cores;
    return whole + (cores > whole);
}

/* Whether a list like "cpu,cpuacct" has the word. */
static int names(const char* list, const char* word) {
    const size_t length = strlen(word);
    for (const char* at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',') at++;
        if (strncmp(at, word, length) == 0 && (at[length] == 0 || at[length] == ',')) return 1;
    }
    return 0;
}

static int cores_of_folder(const char* folder, int is_v2) {
    char path[MAX_PATH + 32], line[128], period_line[128];
    double quota, period;
    snprintf(path, sizeof path, "%s/%s", folder, is_v2 ? "cpu.max" : "cpu.cfs_quota_us");
    if (!read_line(path, line, sizeof line)) return POOL_MAX_THREADS;
    if (is_v2) return sscanf(line, "%lf %lf", &quota, &period) == 2 ? cores_of_quota(quota, period) : POOL_MAX_THREADS;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    return read_line(path, period_line, sizeof period_line) ? cores_of_quota(atof(line), atof(period_line)) : POOL_MAX_THREADS;
}

/* The tightest quota of a group and of those above it, as far as they are mounted there. */
static int cores_of_groups(const char* root, const char* mount_point, const char* mounted, const char* group, int is_v2) {
    char folder[MAX_PATH];
    const size_t length = strcmp(mounted, "/") == 0 ? 0 : strlen(mounted);
    const int is_below = strncmp(group, mounted, length) == 0 && (group[length] == '/' || group[length] == 0);
    const char* below = is_below && strcmp(group + length, "/") != 0 ? group + length : "";
    const int size = snprintf(folder, sizeof folder, "%s%s%s", root, mount_point, below);
    if (size < 0 || (size_t)size >= sizeof folder) return POOL_MAX_THREADS;
    const size_t shortest = strlen(root) + strlen(mount_point);
    for (int cores = POOL_MAX_THREADS;;) {
        const int limit = cores_of_folder(folder, is_v2);
        if (limit < cores) cores = limit;
        char* slash = strrchr(folder, '/');
        if (strlen(folder) <= shortest || slash == NULL || (size_t)(slash - folder) < shortest) return cores;
        *slash = 0;
    }
}

/* A line of proc_pid_mountinfo(5) about control groups of the wanted kind: where it is mounted, and which group is there. */
static int parse_mount(const char* line, int is_v2, char* mount_point, char* mounted) {
    char kind[64], options[1024];
    const char* behind = strstr(line, " - ");
    if (behind == NULL || sscanf(line, "%*s %*s %*s %4095s %4095s", mounted, mount_point) != 2) return 0;
    if (sscanf(behind, " - %63s %*s %1023s", kind, options) != 2) return 0;
    return is_v2 ? strcmp(kind, "cgroup2") == 0 : strcmp(kind, "cgroup") == 0 && names(options, "cpu");
}

static int cores_of_group(const char* root, const char* group, int is_v2) {
    char path[MAX_PATH], line[3 * MAX_PATH], mount_point[MAX_PATH], mounted[MAX_PATH];
    int cores = POOL_MAX_THREADS;
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    FILE* file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (!parse_mount(line, is_v2, mount_point, mounted)) continue;
        const int limit = cores_of_groups(root, mount_point, mounted, group, is_v2);
        if (limit < cores) cores = limit;
    }
    if (file != NULL) fclose(file);
    return cores;
}

int pool_cores_of_cgroups(const char* root) {
    char path[MAX_PATH], line[MAX_PATH + 256];
    int cores = POOL_MAX_THREADS;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE* file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char* controllers = strchr(line, ':');
        char* group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        const int is_v2 = controllers[1] == 0;
        if (!is_v2 && !names(controllers + 1, "cpu")) continue;
        const int limit = cores_of_group(root, group, is_v2);
        if (limit < cores) cores = limit;
    }
    if (file != NULL) fclose(file);
    return cores;
}

int pool_default_num_threads(void) {
    int cores = cores_of_affinity_mask();
    const int quota = pool_cores_of_cgroups("");
    if (quota < cores) cores = quota;
    if (cores > POOL_MAX_THREADS) cores = POOL_MAX_THREADS;
    return cores < 1 ? 1 : cores;
}
