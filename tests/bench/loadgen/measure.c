/* Time, chance, histograms, and what the kernel says of the servers' CPU and memory. */
#include "load.h"

#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

void *grow(void *p, size_t n) {
    void *q = realloc(p, n ? n : 1);
    if (!q) die("out of memory");
    return q;
}

void *zeroed(size_t n, size_t size) {
    void *q = calloc(n ? n : 1, size ? size : 1);
    if (!q) die("out of memory");
    return q;
}

uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* xorshift64*, always from the same seed: every server gets the same load. */
uint64_t draw(void) {
    static uint64_t state = 0x9e3779b97f4a7c15ull;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ull;
}

double draw01(void) { return (double)(draw() >> 11) / 9007199254740992.0; }

#define SUB 64
#define BUCKETS (60 * SUB)
struct histogram {
    uint64_t n, max, bucket[BUCKETS];
};

struct histogram *histogram_new(void) { return zeroed(1, sizeof(struct histogram)); }

static unsigned bucket_of(uint64_t v) {
    if (v < SUB) return (unsigned)v;
    unsigned top = 63u - (unsigned)__builtin_clzll(v);
    return (top - 5) * SUB + (unsigned)((v >> (top - 6)) & (SUB - 1));
}

static double middle_of(unsigned bucket) {
    if (bucket < SUB) return bucket;
    unsigned top = bucket / SUB + 5;
    uint64_t low = (1ull << top) | ((uint64_t)(bucket % SUB) << (top - 6));
    return (double)low + (double)(1ull << (top - 6)) / 2;
}

void histogram_add(struct histogram *h, uint64_t ns) {
    h->n++;
    if (ns > h->max) h->max = ns;
    h->bucket[bucket_of(ns)]++;
}

uint64_t histogram_count(const struct histogram *h) { return h->n; }

double histogram_us(const struct histogram *h, double percent) {
    if (!h->n) return 0;
    if (percent >= 100) return (double)h->max / 1e3;
    uint64_t wanted = (uint64_t)ceil(percent / 100.0 * (double)h->n), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= wanted && h->bucket[i]) return fmin(middle_of(i), (double)h->max) / 1e3;
    }
    return (double)h->max / 1e3;
}

/* schedstat counts nanoseconds on the CPU, where utime and stime count ticks of 10 ms. */
static double cpu_of_process(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) return 0;
    double total = 0;
    struct dirent *task;
    while ((task = readdir(tasks))) {
        if (task->d_name[0] == '.') continue;
        char file[400];
        snprintf(file, sizeof file, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *f = fopen(file, "r");
        unsigned long long ns = 0;
        if (!f) continue;
        if (fscanf(f, "%llu", &ns) == 1) total += (double)ns / 1e9;
        fclose(f);
    }
    closedir(tasks);
    return total;
}

double cpu_of[16];

double cpu_s(void) {
    static double last[16];
    double total = 0;
    for (int i = 0; i < o.npids; i++) {
        double now = cpu_of_process(o.pids[i]);
        cpu_of[i] = now - last[i];
        last[i] = now;
        total += now;
    }
    return total;
}

long memory_kb(const char *key) {
    long total = 0;
    for (int i = 0; i < o.npids; i++) {
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%d/status", o.pids[i]);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        while (fgets(line, sizeof line, f))
            if (!strncmp(line, key, strlen(key))) total += atol(line + strlen(key) + 1);
        fclose(f);
    }
    return total;
}
