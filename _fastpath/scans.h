/* Fixed-size records of a Linux IIO buffer -> counts, and their timestamps -> places in the index.
 *
 * Layout: Documentation/ABI/testing/sysfs-bus-iio, "[be|le]:[s|u]bits/storagebits[>>shift]"; who makes a layout keeps every
 * element within the record, every channel within the ring, and every value + add within 32 bits.
 * A record has no index and no check sum: a lost one shows only as a step in the timestamps, a damaged one not at all.
 */
#ifndef RPI_SCANS_H
#define RPI_SCANS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "frames.h"

#define RPI_SCAN_MAX_BYTES 2048u     /* 128 elements of 8 bytes, as many of padding */
#define RPI_STAMP_SPAN 256u          /* scans that the line through the timestamps remembers */
#define RPI_STAMP_PRIOR 16u          /* scans that the nominal period counts for at the start */
#define RPI_STAMP_OFF 0.01           /* the period is within this part of nominal */
#define RPI_STAMP_JUMP 3600000.0     /* periods: a longer gap is a clock that was set */

typedef struct {
    uint16_t channel, offset;     /* place in the ring's scan, and in the record */
    uint8_t bytes, bits, shift;
    uint8_t is_signed, big_endian;
    int64_t add;                  /* the device's own offset, counts */
    int64_t low, high;            /* at or beyond: saturated */
} rpi_scan_element;

typedef struct {
    uint32_t bytes;               /* of a record; 0: the stream is frames, not records */
    uint32_t n_elements;
    int32_t stamp_offset;         /* of the timestamp, ns; -1: there is none */
    int stamp_big_endian;
    rpi_scan_element elements[RPI_FRAME_MAX_CHANNELS];
} rpi_scan_layout;

static inline uint64_t rpi_scan_load(const uint8_t *p, uint32_t bytes, int big_endian) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++) value |= (uint64_t)p[big_endian ? bytes - 1 - i : i] << (8 * i);
    return value;
}

/* Counts, with the codes that the rings carry. */
static inline int32_t rpi_scan_value(const rpi_scan_element *e, const uint8_t *record) {
    const uint32_t spare = 64u - e->bits;
    const uint64_t raw = rpi_scan_load(record + e->offset, e->bytes, e->big_endian) >> e->shift << spare;
    const int64_t value = e->is_signed ? (int64_t)raw >> spare : (int64_t)(raw >> spare);
    if (value >= e->high) return RPI_COUNT_HIGH;
    if (value <= e->low) return RPI_COUNT_LOW;
    const int64_t count = value + e->add;
    return count >= RPI_COUNT_HIGH ? RPI_COUNT_HIGH : count <= RPI_COUNT_LOW ? RPI_COUNT_LOW : (int32_t)count;
}

static inline void rpi_scan_counts(const rpi_scan_layout *layout, const uint8_t *record, int32_t *counts) {
    for (uint32_t i = 0; i < layout->n_elements; i++)
        counts[layout->elements[i].channel] = rpi_scan_value(&layout->elements[i], record);
}

static inline int64_t rpi_scan_stamp(const rpi_scan_layout *layout, const uint8_t *record) {
    return layout->stamp_offset < 0 ? 0 : (int64_t)rpi_scan_load(record + layout->stamp_offset, 8, layout->stamp_big_endian);
}

/* --- bytes in any pieces -> records --- */

typedef struct {
    uint32_t held;
    uint8_t record[RPI_SCAN_MAX_BYTES];
} rpi_scan_pieces;

typedef void (*rpi_scan_fn)(void *context, const uint8_t *record);

static inline void rpi_scan_feed(rpi_scan_pieces *p, uint32_t size, const uint8_t *bytes, size_t n, rpi_scan_fn fn, void *context) {
    while (n) {
        if (!p->held && n >= size) { /* whole within the input */
            fn(context, bytes);
            bytes += size;
            n -= size;
            continue;
        }
        size_t take = size - p->held < n ? size - p->held : n;
        memcpy(p->record + p->held, bytes, take);
        p->held += (uint32_t)take;
        bytes += take;
        n -= take;
        if (p->held < size) return;
        p->held = 0;
        fn(context, p->record);
    }
}

/* --- timestamps -> index --- */

/* A line through the timestamps: the least-squares filter of growing, then fading memory (alpha-beta; Benedict and
 * Bordner 1962). The nearest whole number of periods from the newest scan's place on the line is how far the index goes on.
 */
typedef struct {
    uint64_t next;                /* index of the scan expected next */
    int64_t stamp_ns;             /* where the line has the newest scan */
    double period_ns, nominal_ns;
    uint32_t points, repeats;
    int started, reopened;
} rpi_stamp_line;

static inline void rpi_stamp_begin(rpi_stamp_line *line, double nominal_ns) {
    memset(line, 0, sizeof *line);
    line->nominal_ns = line->period_ns = nominal_ns;
}

/* The clock, or the gap, is not known: the index goes on at the next window. */
static inline int rpi_stamp_restart(rpi_stamp_line *line, int64_t stamp_ns, uint64_t *index) {
    int kind = line->started ? RPI_REBOOT : RPI_CONTINUES;
    *index = (line->next + RPI_WINDOW_SCANS - 1) / RPI_WINDOW_SCANS * RPI_WINDOW_SCANS;
    line->next = *index + 1;
    line->stamp_ns = stamp_ns;
    line->period_ns = line->nominal_ns;
    line->points = RPI_STAMP_PRIOR;
    line->started = 1;
    line->repeats = 0;
    line->reopened = 0;
    return kind;
}

static inline void rpi_stamp_follow(rpi_stamp_line *line, int64_t stamp_ns, double steps) {
    const double n = line->points, predicted_ns = steps * line->period_ns;
    const double error_ns = (double)(int64_t)((uint64_t)stamp_ns - (uint64_t)line->stamp_ns) - predicted_ns;
    const double alpha = line->reopened ? 1.0 : 2 * (2 * n - 1) / (n * (n + 1)), beta = line->reopened ? 0.0 : 6 / (n * (n + 1));
    line->stamp_ns = (int64_t)((uint64_t)line->stamp_ns + (uint64_t)llround(predicted_ns + alpha * error_ns));
    line->period_ns += beta * error_ns / steps;
    line->period_ns = fmin(fmax(line->period_ns, (1 - RPI_STAMP_OFF) * line->nominal_ns), (1 + RPI_STAMP_OFF) * line->nominal_ns);
    if (line->points < RPI_STAMP_SPAN) line->points++;
    line->reopened = 0; /* a device that was opened again samples at another phase */
}

/* Places one scan: its index, and how many are lost before it. RPI_REPEAT: a stamp from the past, to be thrown away;
 * more than 32 in a row, or a gap beyond an hour, are a clock that was set: RPI_REBOOT.
 */
static inline int rpi_stamp_extend(rpi_stamp_line *line, int64_t stamp_ns, uint64_t *index, uint64_t *lost) {
    const double steps = rint((double)(int64_t)((uint64_t)stamp_ns - (uint64_t)line->stamp_ns) / line->period_ns);
    *lost = 0;
    if (!line->started || steps > RPI_STAMP_JUMP) return rpi_stamp_restart(line, stamp_ns, index);
    if (steps < 1) {
        if (line->repeats++ < RPI_REPEATS_MAX) return RPI_REPEAT;
        return rpi_stamp_restart(line, stamp_ns, index);
    }
    rpi_stamp_follow(line, stamp_ns, steps);
    *lost = (uint64_t)steps - 1;
    *index = line->next + *lost;
    line->next = *index + 1;
    line->repeats = 0;
    return *lost ? RPI_GAP : RPI_CONTINUES;
}

/* The same where no timestamp tells: whatever comes is the next one, and after a hang-up nobody knows how many are lost. */
static inline int rpi_stamp_without(rpi_stamp_line *line, uint64_t *index, uint64_t *lost) {
    const int64_t stamp_ns = line->stamp_ns + (int64_t)line->nominal_ns;
    *lost = 0;
    if (!line->started || line->reopened) return rpi_stamp_restart(line, stamp_ns, index);
    line->stamp_ns = stamp_ns;
    *index = line->next++;
    return RPI_CONTINUES;
}

#endif
