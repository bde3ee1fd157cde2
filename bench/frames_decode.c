/* What the sampler does with the bytes it read, up to the ring: decode, place, unpack. Built and called by frames.py. */
#include "../_fastpath/frames.h"

typedef struct {
    rpi_timeline timeline;
    int32_t *out;
    uint64_t scans, lost;
} sink;

static void take(void *ctx, const rpi_frame *frame) {
    sink *s = (sink *)ctx;
    uint64_t index, ticks, lost;
    if (frame->type != RPI_FRAME_DATA || rpi_timeline_extend(&s->timeline, frame, &index, &ticks, &lost) == RPI_REPEAT) return;
    s->lost += lost;
    for (uint32_t k = 0; k < frame->n_scans; k++, s->scans++) rpi_frame_scan(frame, k, s->out + s->scans * frame->n_channels);
}

/* Scans written to `out`, which has room for all of them; -1 if any was lost. */
int64_t decode(const uint8_t *bytes, uint64_t n, int32_t *out) {
    static rpi_decoder decoder;
    sink s = {.out = out};
    rpi_decoder_init(&decoder);
    rpi_decoder_feed(&decoder, bytes, n, take, &s);
    return s.lost ? -1 : (int64_t)s.scans;
}
