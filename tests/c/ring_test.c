/* The ring as plain C: a producer that runs away from its readers, sequence checks on all that is read. For sanitizers
 * and for other machines (./run.sh).
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/spsc.h"

#define CHANNELS 47u /* odd: the last word is half used */
#define CAPACITY 64u /* small: readers are lapped all the time */
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static rpi_ring ring;
static _Atomic int finished;
static uint64_t scans_to_push = 200000;

/* Every word of a scan follows from its index, so a mixture of two scans cannot go unseen. */
static int32_t expected_count(uint64_t index, uint32_t channel) {
    return (int32_t)((uint32_t)index * 2654435761u + channel);
}

/* Of each 1000 scans 7 are lost, in gaps of 1, 2 and 4; the last is never lost. */
static int is_lost(uint64_t index) {
    uint64_t place = index % 1000;
    return place == 10 || place == 500 || place == 501 || (place >= 800 && place < 804);
}

static void push(rpi_ring *to, uint64_t index) {
    int32_t counts[CHANNELS];
    for (uint32_t channel = 0; channel < CHANNELS; channel++) counts[channel] = expected_count(index, channel);
    rpi_ring_push(to, index, (int64_t)(3 * index), 5 * index, (uint32_t)(7 * index), (uint32_t)(11 * index), counts);
}

static int is_whole(const rpi_scan *scan, uint64_t index) {
    int whole = rpi_scan_index(scan) == index && rpi_scan_time(scan) == (int64_t)(3 * index);
    whole &= rpi_scan_ticks(scan) == 5 * index && rpi_scan_status(scan) == (uint32_t)(7 * index);
    whole &= rpi_scan_flags(scan) == (uint32_t)(11 * index);
    for (uint32_t channel = 0; channel < CHANNELS; channel++)
        whole &= rpi_scan_count(scan, channel) == expected_count(index, channel);
    return whole;
}

static void *produce(void *unused) {
    (void)unused;
    for (uint64_t index = 0; index < scans_to_push; index++) {
        if (!is_lost(index)) push(&ring, index);
        if (index % 97 == 0) sched_yield(); /* so that one core also sees readers in the middle */
    }
    atomic_store(&finished, 1);
    return NULL;
}

/* Reads scan by scan, in place. */
static void *consume(void *result) {
    rpi_reader reader = {.ring = &ring};
    uint64_t taken = 0, torn = 0, last = 0;
    for (int end = 0; !end;) {
        end = atomic_load(&finished); /* before front: what was pushed before is then seen */
        for (const rpi_scan *scan; (scan = rpi_reader_front(&reader));) {
            uint64_t index = reader.next;
            int whole = is_whole(scan, index);
            if (!rpi_reader_pop(&reader)) {
                torn += !whole;
                continue;
            }
            CHECK(whole);
            CHECK(taken == 0 || index > last);
            CHECK(!is_lost(index));
            last = index;
            taken++;
        }
    }
    CHECK(reader.next == scans_to_push);
    CHECK(last == scans_to_push - 1);
    CHECK(taken + reader.lost == scans_to_push);
    CHECK(reader.lost >= scans_to_push / 1000 * 7);
    ((uint64_t *)result)[0] = taken;
    ((uint64_t *)result)[1] = torn;
    return NULL;
}

/* Takes windows of 16 scans below head, as the control loop does, and copies. */
static void *window(void *result) {
    rpi_word copy[(sizeof(rpi_scan) + 4 * CHANNELS + 7) / 8];
    uint64_t windows = 0;
    while (!atomic_load(&finished)) {
        uint64_t head = rpi_ring_head(&ring);
        if (head < 16) continue;
        uint64_t first = head - 16, there = 0, expected = 0;
        for (uint64_t index = first; index < head; index++) {
            int whole = rpi_ring_read(&ring, index, copy);
            if (whole) CHECK(is_whole((const rpi_scan *)(const void *)copy, index));
            there += (uint64_t)whole;
            expected += !is_lost(index);
        }
        CHECK(there <= expected);
        if (!rpi_ring_intact(&ring, first)) continue;
        CHECK(there == expected); /* not lapped: what is missing is what was lost, exactly */
        windows++;
    }
    ((uint64_t *)result)[0] = windows;
    return NULL;
}

static void run_threads(void *memory) {
    pthread_t producer, consumer, watcher;
    uint64_t consumed[2], windows[1];
    rpi_ring_create(&ring, memory, CHANNELS, CAPACITY, 1000);
    atomic_store(&finished, 0);
    CHECK(!pthread_create(&consumer, NULL, consume, consumed));
    CHECK(!pthread_create(&watcher, NULL, window, windows));
    CHECK(!pthread_create(&producer, NULL, produce, NULL));
    CHECK(!pthread_join(producer, NULL));
    CHECK(!pthread_join(consumer, NULL));
    CHECK(!pthread_join(watcher, NULL));
    printf("%llu pushed; reader took %llu, threw away %llu torn; %llu windows\n", (unsigned long long)scans_to_push,
           (unsigned long long)consumed[0], (unsigned long long)consumed[1], (unsigned long long)windows[0]);
}

/* One thread: counts are exact to the scan. */
static void run_exact(void *memory) {
    rpi_reader reader = {.ring = &ring};
    uint64_t taken = 0, lost = 0, lost_before = 0;
    rpi_ring_create(&ring, memory, CHANNELS, CAPACITY, 1000);
    for (uint64_t index = 0; index < 10000; index++) {
        lost += (uint64_t)is_lost(index);
        if (is_lost(index)) continue;
        push(&ring, index);
        if (index % 50 != 49) continue;
        for (const rpi_scan *scan; (scan = rpi_reader_front(&reader)); taken++) {
            CHECK(is_whole(scan, reader.next));
            CHECK(rpi_reader_pop(&reader));
        }
        CHECK(reader.lost == lost && taken + lost == index + 1);
        CHECK(rpi_ring_missing(&ring, index - 49, 50) == lost - lost_before);
        lost_before = lost;
    }
    CHECK(lost == 70);
}

/* Overwritten while it is used: the reader is told, by exactly the scan that was hit. */
static void run_lapped_while_reading(void *memory) {
    rpi_reader reader = {.ring = &ring};
    rpi_ring_create(&ring, memory, CHANNELS, CAPACITY, 1000);
    for (uint64_t index = 0; index < CAPACITY; index++) push(&ring, index);
    CHECK(rpi_scan_index(rpi_reader_front(&reader)) == 0);
    CHECK(rpi_ring_intact(&ring, 0));
    push(&ring, CAPACITY);
    CHECK(!rpi_reader_pop(&reader) && reader.lost == 1);
    CHECK(is_whole(rpi_reader_front(&reader), 1));
    CHECK(rpi_reader_pop(&reader) && reader.lost == 1);
    CHECK(rpi_scan_index(rpi_reader_front(&reader)) == 2);
    atomic_store(&ring.header->claim, CAPACITY + 3); /* the producer is within a push that is not published */
    CHECK(!rpi_reader_pop(&reader) && reader.lost == 2);
}

static void run_headers(void *memory, uint64_t bytes) {
    rpi_ring other;
    rpi_ring_create(&other, memory, CHANNELS, CAPACITY, 1000);
    CHECK(rpi_ring_check(memory, bytes) == RPI_RING_OK);
    CHECK(rpi_ring_check(memory, bytes - 1) == RPI_RING_TOO_SHORT);
    CHECK(rpi_ring_check(memory, 100) == RPI_RING_TOO_SHORT);
    other.header->capacity = UINT64_MAX / 8;
    CHECK(rpi_ring_check(memory, bytes) == RPI_RING_TOO_SHORT);
    other.header->capacity = 0;
    CHECK(rpi_ring_check(memory, bytes) == RPI_RING_BAD_SHAPE);
    other.header->version = 99;
    CHECK(rpi_ring_check(memory, bytes) == RPI_RING_OTHER_VERSION);
    other.header->magic = 0;
    CHECK(rpi_ring_check(memory, bytes) == RPI_RING_NOT_A_RING);
}

/* A producer that died within a scan: the next one must not make that scan appear. */
static void run_take_over(void *memory) {
    rpi_ring_create(&ring, memory, CHANNELS, CAPACITY, 1000);
    for (uint64_t index = 0; index < 100; index++) push(&ring, index);
    atomic_store(&ring.header->claim, 101);
    rpi_ring_slot(&ring, 100)->index = 100;
    rpi_ring_take_over(&ring);
    push(&ring, 105);
    CHECK(rpi_ring_missing(&ring, 100, 6) == 5);
    CHECK(rpi_ring_missing(&ring, 42, 58) == 0);
    CHECK(rpi_ring_missing(&ring, 36, 6) == 6); /* overwritten, or may have been */
}

int main(int argc, char **argv) {
    uint64_t bytes = rpi_ring_bytes(CHANNELS, CAPACITY);
    void *memory = malloc(bytes); /* exactly as much: AddressSanitizer sees one byte too far */
    CHECK(memory);
    if (argc > 1) scans_to_push = strtoull(argv[1], NULL, 10);
    run_headers(memory, bytes);
    run_take_over(memory);
    run_exact(memory);
    run_lapped_while_reading(memory);
    run_threads(memory);
    free(memory);
    return 0;
}
