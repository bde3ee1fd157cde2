/* The frame decoder as plain C: damaged streams in pieces of their exact size, so that a sanitizer sees any byte too many.
 * All three CRC implementations against the definition. Argument: frames to damage.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/frames.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static uint64_t seed = 0x9E3779B97F4A7C15ull;

static uint32_t below(uint32_t n) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * 2685821657736338717ull) >> 33) % n;
}

static uint32_t crc_by_bit(const uint8_t *p, size_t n) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1u ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
    }
    return ~crc;
}

static void test_crc(void) {
    uint8_t bytes[400];
    CHECK(rpi_crc32c((const uint8_t *)"123456789", 9) == 0xE3069283u);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)below(256);
    for (uint32_t at = 0; at < 9; at++)
        for (uint32_t n = 0; n + at <= sizeof bytes; n++) {
            uint32_t crc = crc_by_bit(bytes + at, n);
            CHECK(~rpi_crc32c_by_table(UINT32_MAX, bytes + at, n) == crc);
            if (rpi_crc32c_instruction) CHECK(~rpi_crc32c_by_instruction(UINT32_MAX, bytes + at, n) == crc);
        }
    printf("crc: the processor's instruction %s\n", rpi_crc32c_instruction ? "agrees" : "is not there");
}

/* Every sample follows from the index, width and shape, so that a damaged one cannot go unseen. */
static int32_t sample(uint32_t index, uint32_t width, uint32_t at) {
    int32_t top = INT32_MAX >> (32u - width);
    uint32_t hash = (index * 2654435761u) ^ ((at + 1) * 40503u * width);
    switch (hash % 64) {
        case 0: return RPI_COUNT_HIGH;
        case 1: return RPI_COUNT_LOW;
        case 2: return RPI_COUNT_FAULT;
        case 3: case 4: case 5:
            if (index % 2) return (int32_t)(hash >> 28); /* zero bytes; without them COBS blocks grow to 254 bytes */
    }
    return (int32_t)(hash % (uint32_t)top) * (hash & 64 ? 1 : -1);
}

static uint32_t narrow(int32_t value, uint32_t width) {
    int32_t top = INT32_MAX >> (32u - width);
    if (value == RPI_COUNT_HIGH) return (uint32_t)top;
    if (value == RPI_COUNT_LOW) return (uint32_t)-top;
    if (value == RPI_COUNT_FAULT) return (uint32_t)(-top - 1);
    return (uint32_t)value;
}

static uint32_t shape_channels(uint32_t index) { return 1 + index * 7u % 50; }
static uint32_t shape_scans(uint32_t index) { return 1 + index * 3u % 10; }
static uint32_t shape_width(uint32_t index) { return 16 + 8 * (index % 3); }

static uint32_t encode(uint32_t index, uint8_t *wire) {
    uint8_t raw[RPI_FRAME_MAX_BYTES] = {0};
    uint32_t width = shape_width(index), channels = shape_channels(index), scans = shape_scans(index), n = RPI_FRAME_HEADER_BYTES;
    uint16_t shape[2] = {(uint16_t)channels, (uint16_t)scans};
    raw[0] = RPI_FRAME_VERSION;
    raw[1] = RPI_FRAME_DATA;
    raw[3] = (uint8_t)width;
    memcpy(raw + 8, &index, 4);
    memcpy(raw + 24, shape, 4);
    for (uint32_t at = 0; at < channels * scans; at++, n += width / 8) {
        uint32_t value = narrow(sample(index, width, at), width);
        memcpy(raw + n, &value, width / 8);
    }
    uint32_t crc = crc_by_bit(raw, n);
    memcpy(raw + n, &crc, 4);
    n = rpi_cobs_encode(raw, n + 4, wire);
    wire[n] = 0;
    return n + 1;
}

/* Returns the new length. The delimiter at the end is left alone, or is the damage. */
static uint32_t damage(uint8_t *wire, uint32_t n) {
    for (uint32_t times = below(4); times; times--) {
        uint32_t at = below(n), many = 1 + below(8);
        switch (below(6)) {
            case 0: wire[at] ^= (uint8_t)(1u << below(8)); break;
            case 1: wire[at] = (uint8_t)below(256); break;
            case 2: wire[at] = 0; break;
            case 3: /* a piece is lost */
                if (at + many < n) {
                    memmove(wire + at, wire + at + many, n - at - many);
                    n -= many;
                }
                break;
            case 4: /* a piece comes in */
                memmove(wire + at + many, wire + at, n - at);
                for (uint32_t i = 0; i < many; i++) wire[at + i] = (uint8_t)below(256);
                n += many;
                break;
            default: /* a burst */
                for (uint32_t i = at; i < n && i < at + many; i++) wire[i] = (uint8_t)below(256);
        }
    }
    return n;
}

static uint64_t right;

static void take(void *ctx, const rpi_frame *frame) {
    int32_t out[RPI_FRAME_MAX_CHANNELS];
    (void)ctx;
    CHECK(frame->width == shape_width(frame->index) && frame->n_channels == shape_channels(frame->index));
    CHECK(frame->n_scans == shape_scans(frame->index));
    rpi_frame alone = *frame; /* with no more behind the payload than the one byte that is promised */
    uint8_t *exact = malloc(frame->payload_bytes + 1);
    memcpy(exact, frame->payload, frame->payload_bytes + 1);
    alone.payload = exact;
    frame = &alone;
    for (uint32_t scan = 0; scan < frame->n_scans; scan++) {
        uint32_t holds = 0, found = rpi_frame_scan(frame, scan, out);
        for (uint32_t channel = 0; channel < frame->n_channels; channel++) {
            int32_t value = sample(frame->index, frame->width, scan * frame->n_channels + channel);
            CHECK(out[channel] == value && rpi_frame_count(frame, scan, channel) == value);
            if (value == RPI_COUNT_HIGH || value == RPI_COUNT_LOW) holds |= RPI_SAMPLES_SATURATED;
            if (value == RPI_COUNT_FAULT) holds |= RPI_SAMPLES_FAULT;
        }
        CHECK(found == holds);
    }
    free(exact);
    right++;
}

static void feed_in_pieces(rpi_decoder *decoder, const uint8_t *bytes, uint32_t n) {
    while (n) {
        uint32_t piece = below(4) ? 1 + below(n) : 1 + below(n < 16 ? n : 16);
        uint8_t *exact = malloc(piece);
        memcpy(exact, bytes, piece);
        rpi_decoder_feed(decoder, exact, piece, take, NULL);
        free(exact);
        bytes += piece;
        n -= piece;
    }
}

static void test_damaged_stream(uint32_t frames) {
    static rpi_decoder decoder;
    static uint8_t wire[2 * RPI_WIRE_MAX_BYTES];
    rpi_decoder_init(&decoder);
    for (uint32_t index = 0; index < frames; index++) {
        uint32_t n = encode(index, wire);
        uint64_t before = right;
        if (index % 8) n = damage(wire, n);
        feed_in_pieces(&decoder, wire, n);
        CHECK(index % 8 || right == before + 1); /* one that is left alone passes */
        if (index % 8 == 7) feed_in_pieces(&decoder, (const uint8_t *)"", 1); /* what a lost delimiter glued together ends */
    }
    CHECK(right == decoder.frames);
    CHECK(decoder.crc_errors > frames / 8 && decoder.format_errors > frames / 64);
    printf("frames: %u sent, %llu right, %llu wrong CRC, %llu no frame, 0 damaged taken\n", frames, (unsigned long long)right,
           (unsigned long long)decoder.crc_errors, (unsigned long long)decoder.format_errors);
}

static void nothing(void *ctx, const rpi_frame *frame) {
    (void)ctx;
    CHECK(frame == NULL); /* noise holds no frame */
}

static void test_noise(uint32_t blocks) {
    static rpi_decoder decoder;
    uint8_t noise[1024];
    rpi_decoder_init(&decoder);
    for (uint32_t block = 0; block < blocks; block++) {
        for (size_t i = 0; i < sizeof noise; i++) noise[i] = (uint8_t)below(256);
        if (block % 2) /* and blocks that are long enough to be a frame */
            for (size_t i = 0; i < sizeof noise; i++) noise[i] |= 1;
        rpi_decoder_feed(&decoder, noise, sizeof noise, nothing, NULL);
    }
    CHECK(decoder.resync_bytes + decoder.held <= (uint64_t)blocks * sizeof noise);
    CHECK(decoder.crc_errors + decoder.format_errors > blocks / 2);
}

/* More than fits, in one read and without a delimiter; the decoder lies on the heap, where a byte too many is seen. */
static void test_overlong(void) {
    uint32_t n = 4 * RPI_WIRE_MAX_BYTES;
    rpi_decoder *decoder = malloc(sizeof *decoder);
    uint8_t *bytes = malloc(n);
    memset(bytes, 5, n);
    rpi_decoder_init(decoder);
    rpi_decoder_feed(decoder, (const uint8_t *)"", 1, nothing, NULL);
    rpi_decoder_feed(decoder, bytes, 100, nothing, NULL);
    rpi_decoder_feed(decoder, bytes, n, nothing, NULL);
    rpi_decoder_feed(decoder, (const uint8_t *)"", 1, nothing, NULL);
    CHECK(decoder->format_errors == 1 && decoder->resync_bytes == n + 100);
    free(bytes);
    free(decoder);
}

int main(int argc, char **argv) {
    uint32_t frames = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 200000;
    test_crc();
    test_damaged_stream(frames);
    test_noise(frames / 10);
    test_overlong();
    return 0;
}
