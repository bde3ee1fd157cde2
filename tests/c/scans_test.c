/* The IIO scan codec as plain C: random layouts over random bytes that end where the memory ends, random timestamps. For
 * sanitizers and for other machines (./run.sh).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/scans.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static uint64_t state = 88172645463325252u;

static uint64_t any(void) { /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void check_records(void) {
    rpi_scan_layout layout = {.n_elements = 1 + (uint32_t)(any() % 16), .stamp_offset = -1};
    int32_t counts[16];
    for (uint32_t i = 0; i < layout.n_elements; i++) {
        rpi_scan_element *e = &layout.elements[i];
        uint8_t bytes = (uint8_t)(1u << any() % 4), bits = (uint8_t)(2 + any() % ((bytes < 4 ? 8u * bytes : 32u) - 1));
        int is_signed = any() & 1;
        int64_t range = (int64_t)1 << bits;
        layout.bytes = (layout.bytes + bytes - 1u) / bytes * bytes;
        *e = (rpi_scan_element){(uint16_t)i, (uint16_t)layout.bytes, bytes, bits, (uint8_t)(any() % (8u * bytes - bits + 1u)),
                                (uint8_t)is_signed, any() & 1, is_signed ? 0 : -range / 2, is_signed ? -range / 2 : 0,
                                is_signed ? range / 2 - 1 : range - 1};
        layout.bytes += bytes;
    }
    uint8_t *record = malloc(layout.bytes);
    CHECK(record);
    for (uint32_t i = 0; i < layout.bytes; i++) record[i] = (uint8_t)any();
    rpi_scan_counts(&layout, record, counts);
    for (uint32_t i = 0; i < layout.n_elements; i++) {
        int64_t half = (int64_t)1 << (layout.elements[i].bits - 1);
        int rail = counts[i] == RPI_COUNT_HIGH || counts[i] == RPI_COUNT_LOW;
        CHECK(rail || (counts[i] > -half && counts[i] < half - 1));
    }
    free(record);
}

static void check_stamps(void) {
    rpi_stamp_line line;
    uint64_t index, lost, last = 0;
    int64_t stamp = (int64_t)any();
    rpi_stamp_begin(&line, 1e6);
    for (uint32_t k = 0; k < 200; k++) {
        uint64_t step = any() % 4 ? 1000000 + any() % 100000 : any();
        stamp = (int64_t)((uint64_t)stamp + step);
        line.reopened |= any() % 16 == 0;
        if (rpi_stamp_extend(&line, stamp, &index, &lost) == RPI_REPEAT) continue;
        CHECK(k == 0 || index > last);
        CHECK(lost <= 3600000);
        CHECK(line.period_ns >= 0.99e6 && line.period_ns <= 1.01e6);
        last = index;
    }
}

int main(int argc, char **argv) {
    uint32_t rounds = (argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 50000) / 10;
    for (uint32_t k = 0; k < rounds; k++) {
        check_records();
        check_stamps();
    }
    printf("scans: %u layouts and lines\n", rounds);
    return 0;
}
