/* The sampling thread as plain C: frames with known damage and IIO records with known gaps through a pipe, a hang-up, a
 * re-plug, a paced run. The owner
 * reads all that it may read while the thread works. For sanitizers and for other machines (./run.sh).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/sampler.h"

#define CHANNELS 3u
#define SCANS_A_FRAME 5u
#define CAPACITY 100000u
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static int32_t expected_count(uint64_t index, uint32_t channel) {
    return (int32_t)((uint32_t)index * 2654435761u + channel) >> 8;
}

/* Wire bytes of one frame, delimiter included. */
static size_t encode(uint8_t *wire, uint32_t type, uint32_t index) {
    uint8_t raw[RPI_FRAME_MAX_BYTES] = {RPI_FRAME_VERSION, (uint8_t)type, 0, 32};
    uint32_t words[5] = {7, index, 1000 * index, 0, 0}; /* boot id, index, ticks, status, overflow */
    uint16_t shape[2] = {CHANNELS, type == RPI_FRAME_DATA ? SCANS_A_FRAME : 0};
    uint32_t n = RPI_FRAME_HEADER_BYTES;
    memcpy(raw + 4, words, sizeof words);
    memcpy(raw + 24, shape, sizeof shape);
    if (type == RPI_FRAME_DESCRIPTION) n += RPI_DESCRIPTION_BYTES + CHANNELS * RPI_DESCRIPTION_CHANNEL_BYTES;
    for (uint32_t k = 0; k < shape[1]; k++)
        for (uint32_t channel = 0; channel < CHANNELS; channel++, n += 4) {
            int32_t count = expected_count(index + k, channel);
            memcpy(raw + n, &count, 4);
        }
    uint32_t crc = rpi_crc32c(raw, n);
    memcpy(raw + n, &crc, 4);
    size_t wire_bytes = rpi_cobs_encode(raw, n + 4, wire);
    wire[wire_bytes] = 0;
    return wire_bytes + 1;
}

static void send_all(int fd, const uint8_t *bytes, size_t n) {
    while (n) {
        ssize_t sent = write(fd, bytes, n);
        CHECK(sent > 0);
        bytes += sent;
        n -= (size_t)sent;
    }
}

static rpi_sampler *new_sampler(void *memory, int event_fd) {
    rpi_sampler *s = calloc(1, sizeof *s);
    CHECK(s);
    rpi_ring_create(&s->ring, memory, CHANNELS, CAPACITY, 1000);
    s->event_fd = event_fd;
    s->notify_every = 100;
    s->period_ns = 1000000;
    CHECK(!pthread_mutex_init(&s->description_lock, NULL));
    return s;
}

/* What an owner may do at any time. */
static void look(rpi_sampler *s) {
    for (enum rpi_counter which = 0; which < RPI_N_COUNTERS; which++) CHECK(rpi_sampler_get(s, which) < UINT32_MAX);
    CHECK(rpi_sampler_boot_id(s) == 0 || rpi_sampler_boot_id(s) == 7);
    CHECK(!(rpi_sampler_quantile(s, 0.99) < 0));
    CHECK(!pthread_mutex_lock(&s->description_lock));
    CHECK(s->description_bytes == 0 || s->description_bytes == RPI_DESCRIPTION_BYTES + CHANNELS * RPI_DESCRIPTION_CHANNEL_BYTES);
    CHECK(!pthread_mutex_unlock(&s->description_lock));
}

static void check_ring(const rpi_ring *ring, uint64_t received) {
    uint64_t found = 0, head = rpi_ring_head(ring);
    int64_t last_ns = 0;
    for (uint64_t index = 0; index < head; index++) {
        const rpi_scan *scan = rpi_ring_slot(ring, index);
        if (rpi_scan_index(scan) != index) continue;
        found++;
        CHECK(rpi_scan_time(scan) > last_ns);
        last_ns = rpi_scan_time(scan);
        for (uint32_t channel = 0; channel < CHANNELS; channel++)
            CHECK(rpi_scan_count(scan, channel) == expected_count(index, channel));
    }
    CHECK(found == received);
}

static void run_streamed(void *memory, uint32_t n_frames) {
    uint8_t wire[RPI_WIRE_MAX_BYTES + 1];
    int event_fd = eventfd(0, EFD_NONBLOCK), first[2], second[2];
    uint64_t sent = 0, lost = 0, damaged = 0, woken = 0;
    rpi_sampler *s = new_sampler(memory, event_fd);
    CHECK(!pipe(first) && !pipe(second));
    CHECK(!rpi_sampler_start(s, first[0], 0));
    send_all(first[1], (const uint8_t[]){0}, 1);
    for (uint32_t frame = 0; frame < n_frames; frame++) {
        int fd = frame < n_frames / 2 ? first[1] : second[1];
        if (frame == n_frames / 2) { /* pull the plug, and put it back */
            struct pollfd event = {.fd = event_fd, .events = POLLIN};
            send_all(first[1], wire, 3); /* a frame that is cut */
            close(first[1]);
            while (rpi_sampler_connected(s)) {
                CHECK(poll(&event, 1, 5000) == 1);
                CHECK(read(event_fd, &woken, sizeof woken) == sizeof woken);
            }
            close(first[0]);
            rpi_sampler_attach(s, second[0]);
            CHECK(rpi_sampler_connected(s));
        }
        size_t n = encode(wire, RPI_FRAME_DATA, frame * SCANS_A_FRAME);
        int last = frame == n_frames - 1;
        if (frame % 50 == 20 && !last) {
            wire[frame % 11 + 4] ^= wire[frame % 11 + 4] == 0x40 ? 0x20 : 0x40; /* not a delimiter: that were two pieces */
            damaged++;
        } else if (frame % 50 == 30 && !last) {
            lost += SCANS_A_FRAME;
            continue;
        } else {
            sent += SCANS_A_FRAME;
        }
        send_all(fd, wire, n);
        if (frame % 100 == 0) send_all(fd, wire, encode(wire, RPI_FRAME_DESCRIPTION, frame * SCANS_A_FRAME));
        if (frame % 16 == 0) look(s);
    }
    rpi_sampler_stop(s);
    look(s);
    CHECK(!rpi_sampler_connected(s));
    CHECK(s->description_bytes > 0);
    CHECK(rpi_sampler_get(s, RPI_RECEIVED) == sent);
    CHECK(rpi_sampler_get(s, RPI_LOST) == lost + damaged * SCANS_A_FRAME);
    CHECK(rpi_sampler_get(s, RPI_CORRUPT) == damaged + 1);
    CHECK(rpi_sampler_get(s, RPI_DISCONNECTS) == 1);
    CHECK(rpi_ring_head(&s->ring) == n_frames * SCANS_A_FRAME);
    check_ring(&s->ring, sent);
    printf("streamed: %llu scans, %llu lost as injected\n", (unsigned long long)sent,
           (unsigned long long)rpi_sampler_get(s, RPI_LOST));
    close(second[0]);
    close(second[1]);
    close(event_fd);
    free(s);
}

/* Big-endian s32 counts, then the stamp: 24 bytes with the padding. */
static void encode_record(uint8_t *record, uint64_t index) {
    const uint64_t stamp = 1000000000 + index * 1000000 + index * 7919 % 100000; /* up to 0.1 ms of jitter */
    memset(record, 0, 24);
    for (uint32_t channel = 0; channel < CHANNELS; channel++)
        for (uint32_t byte = 0; byte < 4; byte++)
            record[4 * channel + byte] = (uint8_t)((uint32_t)expected_count(index, channel) >> (24 - 8 * byte));
    memcpy(record + 16, &stamp, 8);
}

static void run_records(void *memory, uint64_t n_scans) {
    uint8_t records[240];
    int event_fd = eventfd(0, EFD_NONBLOCK), first[2], second[2];
    uint64_t sent = 0, lost = 0;
    rpi_sampler *s = new_sampler(memory, event_fd);
    s->layout.bytes = 24;
    s->layout.n_elements = CHANNELS;
    s->layout.stamp_offset = 16;
    for (uint16_t channel = 0; channel < CHANNELS; channel++)
        s->layout.elements[channel] = (rpi_scan_element){channel, (uint16_t)(4 * channel), 4, 32, 0, 1, 1, 0, INT32_MIN, INT32_MAX};
    CHECK(!pipe(first) && !pipe(second));
    CHECK(!rpi_sampler_start(s, first[0], 0));
    for (uint64_t index = 0; index < n_scans; index += 10) {
        int fd = index < n_scans / 2 ? first[1] : second[1];
        if (index == n_scans / 20 * 10) { /* pull the plug, and put it back */
            struct pollfd event = {.fd = event_fd, .events = POLLIN};
            uint64_t woken;
            send_all(first[1], records, 5); /* a record that is cut */
            close(first[1]);
            while (rpi_sampler_connected(s)) {
                CHECK(poll(&event, 1, 5000) == 1);
                CHECK(read(event_fd, &woken, sizeof woken) == sizeof woken || errno == EAGAIN);
            }
            close(first[0]);
            rpi_sampler_attach(s, second[0]);
            fd = second[1];
        }
        if (index / 10 % 50 == 30 && index + 10 < n_scans) {
            lost += 10;
            continue;
        }
        for (uint32_t k = 0; k < 10; k++) encode_record(records + 24 * k, index + k);
        size_t cut = index / 10 % 240;
        send_all(fd, records, cut);
        send_all(fd, records + cut, sizeof records - cut);
        sent += 10;
        if (index / 10 % 16 == 0) look(s);
    }
    rpi_sampler_stop(s);
    look(s);
    CHECK(rpi_sampler_get(s, RPI_RECEIVED) == sent);
    CHECK(rpi_sampler_get(s, RPI_LOST) == lost);
    CHECK(rpi_sampler_get(s, RPI_RESYNC_BYTES) == 5);
    CHECK(rpi_sampler_get(s, RPI_DISCONNECTS) == 1);
    CHECK(rpi_sampler_get(s, RPI_REBOOTS) == 0 && rpi_sampler_get(s, RPI_REPEATED) == 0);
    check_ring(&s->ring, sent);
    printf("records: %llu scans, %llu lost as injected\n", (unsigned long long)sent, (unsigned long long)lost);
    close(second[0]);
    close(second[1]);
    close(event_fd);
    free(s);
}

static void run_paced(void *memory, void *feed_memory) {
    int32_t counts[CHANNELS];
    int event_fd = eventfd(0, EFD_NONBLOCK);
    rpi_sampler *s = new_sampler(memory, event_fd);
    struct pollfd event = {.fd = event_fd, .events = POLLIN};
    rpi_ring_create(&s->feed, feed_memory, CHANNELS, 1000, 1000);
    s->paced = 1;
    s->period_ns = 100000;
    CHECK(!rpi_sampler_start(s, -1, 0));
    for (uint64_t index = 0; index < 3000; index++) {
        while (index >= rpi_sampler_forwarded(s) + 1000) CHECK(poll(&event, 1, 5000) == 1);
        for (uint32_t channel = 0; channel < CHANNELS; channel++) counts[channel] = expected_count(index, channel);
        rpi_ring_push(&s->feed, index, 0, 0, 0, 0, counts);
        if (index % 16 == 0) look(s);
    }
    while (rpi_sampler_forwarded(s) < 3000) {
        uint64_t windows;
        CHECK(poll(&event, 1, 5000) == 1);
        CHECK(read(event_fd, &windows, sizeof windows) == sizeof windows || errno == EAGAIN);
    }
    rpi_sampler_stop(s);
    uint64_t received = rpi_sampler_get(s, RPI_RECEIVED), starved = rpi_sampler_get(s, RPI_STARVED);
    CHECK(received + starved == rpi_sampler_forwarded(s));
    check_ring(&s->ring, received);
    printf("paced: %llu scans, %llu starved\n", (unsigned long long)received, (unsigned long long)starved);
    close(event_fd);
    free(s);
}

int main(int argc, char **argv) {
    uint32_t n_frames = (argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 50000) / 10;
    void *memory = malloc(rpi_ring_bytes(CHANNELS, CAPACITY)), *feed_memory = malloc(rpi_ring_bytes(CHANNELS, 1000));
    CHECK(memory && feed_memory);
    run_streamed(memory, n_frames);
    run_records(memory, n_frames / 10 * 100);
    run_paced(memory, feed_memory);
    free(memory);
    free(feed_memory);
    return 0;
}
