/* Sensor board frames: bytes in any pieces -> checked frames -> 64-bit index and ticks. See docs/sensor-board-protocol.md.
 *
 * Contract: one thread per decoder and per timeline. Nothing allocates, blocks or fails; a frame that is handed on has
 * the right CRC, version, width and lengths, and everything else is thrown away and counted.
 */
#ifndef RPI_FRAMES_H
#define RPI_FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames.h loads the little-endian wire as it lies"
#endif

#define RPI_FRAME_VERSION 1u
#define RPI_FRAME_DATA 1u
#define RPI_FRAME_DESCRIPTION 2u
#define RPI_FRAME_HEADER_BYTES 28u
#define RPI_FRAME_CRC_BYTES 4u
#define RPI_FRAME_MAX_BYTES 4096u /* header, payload, CRC */
#define RPI_WIRE_MAX_BYTES 4113u  /* the same after COBS, without the delimiter */
#define RPI_FRAME_MAX_CHANNELS 128u
#define RPI_DESCRIPTION_BYTES 48u
#define RPI_DESCRIPTION_CHANNEL_BYTES 24u

/* In-band codes once the width is gone: what the rings carry. */
#define RPI_COUNT_HIGH INT32_MAX
#define RPI_COUNT_LOW (-INT32_MAX)
#define RPI_COUNT_FAULT INT32_MIN

/* What a scan holds, as returned by rpi_frame_scan. */
#define RPI_SAMPLES_SATURATED 1u
#define RPI_SAMPLES_FAULT 2u

typedef struct {
    uint8_t version, type, board_id, width;
    uint32_t boot_id, index, ticks, status;
    uint16_t n_channels, n_scans;
    uint32_t overflow;
    const uint8_t *payload; /* valid within the call that hands the frame over; one byte behind it is readable too */
    uint32_t payload_bytes;
} rpi_frame;

typedef void (*rpi_frame_fn)(void *ctx, const rpi_frame *frame);

typedef struct {
    uint64_t frames;        /* handed on */
    uint64_t crc_errors;    /* decoded, but the CRC is wrong */
    uint64_t format_errors; /* not COBS, too long or short, or a header that contradicts the protocol */
    uint64_t resync_bytes;  /* wire bytes of all that was thrown away, delimiters apart */
    uint64_t held;          /* bytes since the last delimiter; beyond RPI_WIRE_MAX_BYTES they are counted, not kept */
    uint32_t synced;        /* a delimiter was seen: from here on, damage is damage and not a frame begun before us */
    uint8_t wire[RPI_WIRE_MAX_BYTES];
    uint8_t raw[RPI_WIRE_MAX_BYTES + 16]; /* 16: short COBS blocks are copied as 16 bytes */
} rpi_decoder;

static uint32_t rpi_crc32c_table[8][256];
static int rpi_crc32c_instruction; /* this processor computes it */

/* Before main and before any thread, so that both are constant whenever they are read. */
__attribute__((constructor)) static void rpi_crc32c_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
        rpi_crc32c_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int slice = 1; slice < 8; slice++) {
            uint32_t before = rpi_crc32c_table[slice - 1][i];
            rpi_crc32c_table[slice][i] = (before >> 8) ^ rpi_crc32c_table[0][before & 0xFFu];
        }
#if defined(__x86_64__)
    __builtin_cpu_init();
    rpi_crc32c_instruction = __builtin_cpu_supports("sse4.2") != 0;
#elif defined(__aarch64__)
    rpi_crc32c_instruction = (getauxval(AT_HWCAP) & (1ul << 7)) != 0; /* HWCAP_CRC32 */
#endif
}

static inline uint32_t rpi_load32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline uint64_t rpi_load64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

/* Eight bytes a step (Kounavis and Berry, "Novel table lookup-based algorithms", 2008). */
static inline uint32_t rpi_crc32c_by_table(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t low = crc ^ rpi_load32(p), high = rpi_load32(p + 4);
        crc = rpi_crc32c_table[7][low & 0xFFu] ^ rpi_crc32c_table[6][(low >> 8) & 0xFFu] ^
              rpi_crc32c_table[5][(low >> 16) & 0xFFu] ^ rpi_crc32c_table[4][low >> 24] ^
              rpi_crc32c_table[3][high & 0xFFu] ^ rpi_crc32c_table[2][(high >> 8) & 0xFFu] ^
              rpi_crc32c_table[1][(high >> 16) & 0xFFu] ^ rpi_crc32c_table[0][high >> 24];
    }
    for (; n; p++, n--) crc = (crc >> 8) ^ rpi_crc32c_table[0][(crc ^ *p) & 0xFFu];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static inline uint32_t rpi_crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) crc = (uint32_t)_mm_crc32_u64(crc, rpi_load64(p));
    for (; n; p++, n--) crc = _mm_crc32_u8(crc, *p);
    return crc;
}
#elif defined(__aarch64__)
/* Assembler, as compilers do not agree on how to ask for the intrinsic in one function only. */
static inline uint32_t rpi_crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8)
        __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(rpi_load64(p)));
    for (; n; p++, n--) __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p));
    return crc;
}
#else
#define rpi_crc32c_by_instruction rpi_crc32c_by_table
#endif

static inline uint32_t rpi_crc32c(const uint8_t *p, size_t n) {
    return ~(rpi_crc32c_instruction ? rpi_crc32c_by_instruction(UINT32_MAX, p, n) : rpi_crc32c_by_table(UINT32_MAX, p, n));
}

/* `out` has n + 16 bytes. Returns the decoded length, or UINT32_MAX where a block runs past the end. */
static inline uint32_t rpi_cobs_decode(const uint8_t *in, uint32_t n, uint8_t *out) {
    uint32_t from = 0, to = 0;
    while (from < n) {
        uint32_t code = in[from++], run = code - 1u;
        if (run > n - from) return UINT32_MAX;
        if (run <= 16 && n - from >= 16)
            memcpy(out + to, in + from, 16); /* fixed size: most blocks are short, a call for each would dominate */
        else
            memcpy(out + to, in + from, run);
        from += run;
        to += run;
        if (code != 0xFFu && from < n) out[to++] = 0;
    }
    return to;
}

/* `out` has n + n / 254 + 1 bytes. Returns the encoded length, without the delimiter. */
static inline uint32_t rpi_cobs_encode(const uint8_t *in, uint32_t n, uint8_t *out) {
    uint32_t at = 0, to = 1; /* at: where the open block's code goes */
    for (uint32_t i = 0; i < n; i++) {
        if (in[i]) out[to++] = in[i];
        if (!in[i] || (to - at == 255u && i + 1 < n)) {
            out[at] = (uint8_t)(to - at);
            at = to++;
        }
    }
    out[at] = (uint8_t)(to - at);
    return to;
}

static inline void rpi_decoder_init(rpi_decoder *d) {
    d->frames = d->crc_errors = d->format_errors = d->resync_bytes = d->held = 0;
    d->synced = 0;
}

/* Header and payload of `n` bytes -> frame; 0 where a field contradicts the protocol. */
static inline int rpi_frame_parse(const uint8_t *raw, uint32_t n, rpi_frame *f) {
    memcpy(f, raw, 20); /* version to status lie on the wire as in the struct */
    f->overflow = rpi_load32(raw + 20);
    memcpy(&f->n_channels, raw + 24, 4); /* and n_scans */
    f->payload = raw + RPI_FRAME_HEADER_BYTES;
    f->payload_bytes = n - RPI_FRAME_HEADER_BYTES;
    if (f->version != RPI_FRAME_VERSION || (f->width != 16 && f->width != 24 && f->width != 32)) return 0;
    if (f->n_channels < 1 || f->n_channels > RPI_FRAME_MAX_CHANNELS) return 0;
    if (f->type == RPI_FRAME_DATA)
        return f->n_scans >= 1 && f->payload_bytes == (uint32_t)f->n_scans * f->n_channels * (f->width / 8u);
    return f->type == RPI_FRAME_DESCRIPTION && f->n_scans == 0 &&
           f->payload_bytes == RPI_DESCRIPTION_BYTES + f->n_channels * RPI_DESCRIPTION_CHANNEL_BYTES;
}

/* One piece between two delimiters. */
static inline void rpi_decoder_piece(rpi_decoder *d, const uint8_t *piece, uint64_t n, rpi_frame_fn fn, void *ctx) {
    rpi_frame frame;
    uint32_t bytes = n <= RPI_WIRE_MAX_BYTES ? rpi_cobs_decode(piece, (uint32_t)n, d->raw) : UINT32_MAX;
    int sized = bytes >= RPI_FRAME_HEADER_BYTES + RPI_FRAME_CRC_BYTES && bytes <= RPI_FRAME_MAX_BYTES;
    uint32_t body = bytes - RPI_FRAME_CRC_BYTES;
    int intact = sized && rpi_crc32c(d->raw, body) == rpi_load32(d->raw + body);
    if (intact && rpi_frame_parse(d->raw, body, &frame)) {
        d->frames++;
        fn(ctx, &frame);
        return;
    }
    d->resync_bytes += n;
    d->crc_errors += d->synced && sized && !intact;
    d->format_errors += d->synced && (!sized || intact);
}

static inline void rpi_decoder_hold(rpi_decoder *d, const uint8_t *bytes, size_t n) {
    if (d->held < RPI_WIRE_MAX_BYTES) {
        size_t room = RPI_WIRE_MAX_BYTES - (size_t)d->held;
        memcpy(d->wire + d->held, bytes, n < room ? n : room);
    }
    d->held += n;
}

/* Hands every complete, undamaged frame in `bytes` (and what was held from before) to `fn`, in order. */
static inline void rpi_decoder_feed(rpi_decoder *d, const uint8_t *bytes, size_t n, rpi_frame_fn fn, void *ctx) {
    while (n) {
        const uint8_t *end = (const uint8_t *)memchr(bytes, 0, n);
        size_t take = end ? (size_t)(end - bytes) : n;
        if (d->held || !end) rpi_decoder_hold(d, bytes, take);
        if (!end) return;
        if (d->held)
            rpi_decoder_piece(d, d->wire, d->held, fn, ctx);
        else if (take) /* whole within the input: decoded where it lies */
            rpi_decoder_piece(d, bytes, take, fn, ctx);
        d->held = 0;
        d->synced = 1;
        bytes += take + 1;
        n -= take + 1;
    }
}

/* A value of `width` bits, sign-extended, its in-band codes widened to 32 bits. `top` = 2^(width-1) - 1. */
static inline int32_t rpi_widen(int32_t value, int32_t top) {
    if (value == top) return RPI_COUNT_HIGH;
    if (value > -top) return value;
    return value == -top ? RPI_COUNT_LOW : RPI_COUNT_FAULT;
}

static inline int32_t rpi_frame_count(const rpi_frame *f, uint32_t scan, uint32_t channel) {
    uint32_t bytes = f->width / 8u, shift = 32u - f->width;
    const uint8_t *p = f->payload + (scan * f->n_channels + channel) * bytes;
    uint32_t value = 0;
    memcpy(&value, p, bytes);
    return rpi_widen((int32_t)(value << shift) >> shift, INT32_MAX >> shift);
}

/* One whole scan into `out` (n_channels values); returns RPI_SAMPLES_* of what is in it. */
static inline uint32_t rpi_frame_scan(const rpi_frame *f, uint32_t scan, int32_t *out) {
    const uint32_t n = f->n_channels, bytes = f->width / 8u, shift = 32u - f->width;
    const uint8_t *p = f->payload + scan * n * bytes;
    if (bytes == 2) {
        for (uint32_t c = 0; c < n; c++) {
            int16_t value;
            memcpy(&value, p + 2 * c, 2);
            out[c] = value;
        }
    } else if (bytes == 3) {
        uint32_t c = 0;
        for (; c + 2 < n; c += 2) { /* two samples from one load, which stays within the scan */
            uint64_t pair = rpi_load64(p + 3 * c);
            out[c] = (int32_t)((uint32_t)pair << 8) >> 8;
            out[c + 1] = (int32_t)(uint32_t)(pair >> 16) >> 8;
        }
        /* four bytes each: the one too many of the last sample is the first of the CRC, which lies behind the payload */
        for (; c < n; c++) out[c] = (int32_t)(rpi_load32(p + 3 * c) << 8) >> 8;
    } else {
        memcpy(out, p, 4u * n);
    }
    const int32_t top = INT32_MAX >> shift;
    uint32_t codes = 0;
    for (uint32_t c = 0; c < n; c++) codes |= (out[c] >= top) | (out[c] <= -top);
    if (!codes) return 0;
    uint32_t found = 0;
    for (uint32_t c = 0; c < n; c++) {
        out[c] = rpi_widen(out[c], top);
        if (out[c] == RPI_COUNT_FAULT) found |= RPI_SAMPLES_FAULT;
        if (out[c] == RPI_COUNT_HIGH || out[c] == RPI_COUNT_LOW) found |= RPI_SAMPLES_SATURATED;
    }
    return found;
}

/* The board's u32 index and ticks, extended to 64 bits over wrap-around and reboot. */
typedef struct {
    uint64_t first;        /* 64-bit index of the first scan in the newest frame */
    uint64_t next;         /* 64-bit index of the scan expected next */
    uint64_t ticks;        /* of `first`; the low 32 bits are the board's own */
    uint64_t dropped;      /* scans that the board says it dropped since the first frame; they are part of `lost` */
    double ticks_per_scan; /* learned from consecutive frames; 0 = not yet */
    uint32_t boot_id;
    uint32_t board_next; /* the board's own index of the scan expected next */
    uint32_t overflow;   /* of the newest frame */
    uint32_t repeats;    /* frames from the past, in a row */
    uint32_t started;
} rpi_timeline;

enum { RPI_CONTINUES, RPI_GAP, RPI_REBOOT, RPI_REPEAT };

#define RPI_REPEATS_MAX 32u  /* more in a row: a board that restarted without a new boot id */
#define RPI_WINDOW_SCANS 100u /* windows stay aligned with the board's index over a reboot */

static inline void rpi_timeline_init(rpi_timeline *t) { memset(t, 0, sizeof *t); }

/* Where the board's ticks wrapped more than once within a gap, the scans that went by tell how often. */
static inline uint64_t rpi_timeline_ticks(const rpi_timeline *t, uint32_t ticks, uint64_t scans) {
    uint32_t low = ticks - (uint32_t)t->ticks;
    double wraps = ((double)scans * t->ticks_per_scan - (double)low) / 4294967296.0;
    return t->ticks + low + (wraps > 0.5 ? (uint64_t)(wraps + 0.5) << 32 : 0);
}

/* Places a data frame: `index` and `ticks` of its first scan, and how many scans are `lost` before it.
 *
 * RPI_REPEAT: the frame comes from the past and is to be thrown away; the three outputs are not set.
 * RPI_REBOOT: the ticks start anew, and so must any fit of ticks to host time. The index goes on at the next multiple of
 * 100 plus the board's own: scans lost since the reboot are counted, the reboot itself is not.
 * The first frame of all is RPI_CONTINUES, with nothing lost.
 */
static inline int rpi_timeline_extend(rpi_timeline *t, const rpi_frame *f, uint64_t *index, uint64_t *ticks, uint64_t *lost) {
    const uint32_t step = f->index - t->board_next; /* modulo 2^32, as the index wraps */
    int kind;
    if (!t->started) {
        kind = RPI_CONTINUES;
        *index = f->index;
        *ticks = f->ticks;
        *lost = 0;
        t->started = 1;
    } else if (f->boot_id != t->boot_id || (step > INT32_MAX && t->repeats == RPI_REPEATS_MAX)) {
        kind = RPI_REBOOT;
        *index = (t->next + RPI_WINDOW_SCANS - 1) / RPI_WINDOW_SCANS * RPI_WINDOW_SCANS + f->index;
        *ticks = ((t->ticks >> 32) + 1) << 32 | f->ticks;
        *lost = f->index;
        t->dropped += f->overflow;
        t->ticks_per_scan = 0;
    } else if (step > INT32_MAX) {
        t->repeats++;
        return RPI_REPEAT;
    } else {
        kind = step ? RPI_GAP : RPI_CONTINUES;
        *index = t->next + step;
        *ticks = rpi_timeline_ticks(t, f->ticks, *index - t->first);
        *lost = step;
        t->dropped += (uint32_t)(f->overflow - t->overflow);
        if (!step) t->ticks_per_scan = (double)(*ticks - t->ticks) / (double)(*index - t->first);
    }
    t->first = *index;
    t->next = *index + f->n_scans;
    t->ticks = *ticks;
    t->boot_id = f->boot_id;
    t->board_next = f->index + f->n_scans;
    t->overflow = f->overflow;
    t->repeats = 0;
    return kind;
}

#endif
