/* The loops that bench/ring.py times: compiled as the daemon is, called through ctypes. Each returns ns per frame. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "../_fastpath/spsc.h"

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void touch(void *memory, uint64_t bytes) { /* page faults are not what is measured */
    memset(memory, 1, bytes);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

/* Push a frame, use the newest one in place (its first and last count), pop it. */
double ring_push_pop(uint32_t n_channels, uint64_t capacity, uint64_t frames) {
    uint64_t bytes = rpi_ring_bytes(n_channels, capacity);
    void *memory = malloc(bytes);
    int32_t counts[RPI_RING_MAX_CHANNELS] = {0};
    int64_t sum = 0;
    rpi_ring ring;
    touch(memory, bytes);
    rpi_ring_create(&ring, memory, n_channels, capacity, 1000);
    rpi_reader reader = {.ring = &ring};
    double start = now_ns();
    for (uint64_t index = 0; index < frames; index++) {
        counts[0] = (int32_t)index;
        rpi_ring_push(&ring, index, (int64_t)index, index, 0, 0, counts);
        const rpi_scan *scan = rpi_reader_front(&reader);
        sum += rpi_scan_count(scan, 0) + rpi_scan_count(scan, n_channels - 1);
        if (!rpi_reader_pop(&reader)) abort();
    }
    double spent = now_ns() - start;
    if (reader.lost || sum != (int64_t)(frames * (frames - 1) / 2)) abort();
    free(memory);
    return spent / (double)frames;
}

/* The same bytes (a scan's slot), copied to the same places. */
double plain_memcpy(uint32_t n_channels, uint64_t capacity, uint64_t frames) {
    uint64_t slot_bytes = rpi_ring_slot_bytes(n_channels), place = 0;
    char *memory = malloc(slot_bytes * capacity);
    char frame[sizeof(rpi_scan) + 4 * RPI_RING_MAX_CHANNELS] = {0};
    touch(memory, slot_bytes * capacity);
    double start = now_ns();
    for (uint64_t index = 0; index < frames; index++) {
        memcpy(frame, &index, sizeof index);
        memcpy(memory + place * slot_bytes, frame, slot_bytes);
        __asm__ volatile("" : : "r"(memory) : "memory"); /* each copy happens */
        place = place + 1 == capacity ? 0 : place + 1;
    }
    double spent = now_ns() - start;
    free(memory);
    return spent / (double)frames;
}

typedef struct {
    rpi_ring ring;
    uint64_t frames, lost;
    _Atomic int reading;
} pair;

static void *reader_main(void *context) {
    pair *p = context;
    rpi_reader reader = {.ring = &p->ring};
    uint64_t sum = 0;
    atomic_store(&p->reading, 1);
    while (reader.next < p->frames) {
        const rpi_scan *scan = rpi_reader_front(&reader);
        if (!scan) continue;
        sum += (uint64_t)rpi_scan_count(scan, 0);
        rpi_reader_pop(&reader);
    }
    __asm__ volatile("" : : "r"(sum));
    p->lost = reader.lost;
    return NULL;
}

/* Producer and reader on a thread each, from the first push until the reader is through; `lost_share` of frames lapped. */
double ring_two_threads(uint32_t n_channels, uint64_t capacity, uint64_t frames, double *lost_share) {
    uint64_t bytes = rpi_ring_bytes(n_channels, capacity);
    void *memory = malloc(bytes);
    int32_t counts[RPI_RING_MAX_CHANNELS] = {0};
    pair p = {.frames = frames};
    pthread_t thread;
    touch(memory, bytes);
    rpi_ring_create(&p.ring, memory, n_channels, capacity, 1000);
    if (pthread_create(&thread, NULL, reader_main, &p)) abort();
    while (!atomic_load(&p.reading)) {}
    double start = now_ns();
    for (uint64_t index = 0; index < frames; index++) rpi_ring_push(&p.ring, index, (int64_t)index, index, 0, 0, counts);
    pthread_join(thread, NULL);
    double spent = now_ns() - start;
    free(memory);
    *lost_share = (double)p.lost / (double)frames;
    return spent / (double)frames;
}
