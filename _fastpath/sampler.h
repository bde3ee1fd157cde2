/* The sampling thread: one board's frames or IIO records (streamed) or a feed ring on the host clock (paced) -> its ring of scans.
 *
 * Contract: one owner thread calls start, attach and stop; anybody may read the counters. The thread never takes a lock
 * that is held longer than a copy of one description, and never allocates. Descriptors belong to the caller, who closes
 * one only after `connected` fell to 0, after another was attached, or after stop.
 */
#ifndef RPI_SAMPLER_H
#define RPI_SAMPLER_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "board_clock.h"
#include "frames.h"
#include "scans.h"
#include "spsc.h"

#define RPI_READ_BYTES 65536u
#define RPI_DRAIN_BYTES (1u << 20)     /* more than a pipe, pty or socket holds unread by default */
#define RPI_EMPTY_READS_MAX 100u       /* a terminal may once say "readable" and then have nothing; a dead one keeps on */
#define RPI_CAP_IPC_LOCK_BIT 14u       /* linux/capability.h */
#define RPI_STACK_BYTES (256u * 1024u)
#define RPI_TURN_MS 250                /* a thread goes round at least this often, whether or not something comes */

/* Lateness histogram: 64 buckets for each doubling, 1.6 % wide; exact below 64 ns; up to 17 s. */
#define RPI_LATE_SUB_BITS 6u
#define RPI_LATE_BUCKETS ((35u - RPI_LATE_SUB_BITS) << RPI_LATE_SUB_BITS)

enum rpi_counter {
    RPI_RECEIVED,     /* scans written to the ring */
    RPI_LOST,         /* scans missing in the board's index */
    RPI_CORRUPT,      /* frames thrown away: wrong CRC or against the protocol */
    RPI_LATE,         /* scans that came more than one period after their predicted time */
    RPI_OVERFLOW,     /* scans that the board says it dropped; part of lost */
    RPI_RESYNC_BYTES, /* bytes thrown away */
    RPI_REBOOTS,
    RPI_SATURATED,    /* single samples at or beyond full scale */
    RPI_FAULTS,       /* single samples for which the board had no reading */
    RPI_REPEATED,     /* scans that came again, thrown away */
    RPI_FOREIGN,      /* frames of another board or with another channel count, thrown away */
    RPI_DISCONNECTS,
    RPI_BYTES_IN,
    RPI_STARVED,      /* paced: scans that the feed did not have at their deadline */
    RPI_N_COUNTERS
};

typedef struct {
    /* set before the thread starts; rings of at most RPI_FRAME_MAX_CHANNELS */
    rpi_ring ring, feed;
    int board_id, event_fd, priority, lock_memory, paced;
    uint32_t notify_every;
    int64_t period_ns; /* nominal time between scans */
    rpi_scan_layout layout; /* streamed: of the records; frames where its bytes are 0 */
    /* between the owner and the thread */
    pthread_t thread;
    int control_fd; /* eventfd: something below has changed */
    sem_t done;     /* the thread is set up, or has taken the attached descriptor */
    _Atomic int stopping, attach_fd, connected;
    int fifo_errno, lock_errno, lock_future; /* what the kernel said; written before `done` */
    int thread_id;                           /* the kernel's; written before `done` */
    _Atomic uint64_t counters[RPI_N_COUNTERS];
    _Atomic uint64_t turns; /* how often the thread has gone round: the sign that it lives */
    _Atomic uint32_t boot_id;
    _Atomic uint64_t forwarded; /* paced: next scan of the feed */
    _Atomic uint64_t lateness[RPI_LATE_BUCKETS];
    pthread_mutex_t description_lock;
    uint32_t description_bytes;
    uint8_t description[RPI_FRAME_MAX_BYTES];
    /* the thread's own */
    int fd;
    int64_t arrival_ns, last_ns;
    uint64_t base, first_ticks, first_index, notified;
    int placed, stamped, clocked;
    uint32_t begins; /* RPI_SCAN_FIRST until the first scan after a start or reboot is written */
    uint32_t empty_reads;
    rpi_decoder decoder;
    rpi_timeline timeline;
    rpi_board_clock clock;
    rpi_scan_pieces pieces;
    rpi_stamp_line line;
    size_t behind; /* records of this read behind the one at hand */
    int32_t counts[RPI_FRAME_MAX_CHANNELS];
    _Alignas(8) uint8_t bytes[RPI_READ_BYTES]; /* what was read, or one scan of the feed */
} rpi_sampler;

/* Only the thread writes counters: no read-modify-write. Relaxed: each is a number by itself. */
static inline uint64_t rpi_sampler_get(const rpi_sampler *s, enum rpi_counter which) {
    return atomic_load_explicit(&s->counters[which], memory_order_relaxed);
}
static inline void rpi_sampler_set(rpi_sampler *s, enum rpi_counter which, uint64_t value) {
    atomic_store_explicit(&s->counters[which], value, memory_order_relaxed);
}
static inline void rpi_sampler_count(rpi_sampler *s, enum rpi_counter which, uint64_t n) {
    rpi_sampler_set(s, which, rpi_sampler_get(s, which) + n);
}

static inline uint64_t rpi_sampler_turns(const rpi_sampler *s) {
    return atomic_load_explicit(&s->turns, memory_order_relaxed); /* a number by itself */
}
/* Only the thread: as counters. */
static inline void rpi_sampler_turn(rpi_sampler *s) {
    atomic_store_explicit(&s->turns, rpi_sampler_turns(s) + 1, memory_order_relaxed);
}

static inline int64_t rpi_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int rpi_sampler_connected(rpi_sampler *s) {
    return atomic_load_explicit(&s->connected, memory_order_acquire); /* pairs with the releases: 0 = fd is free */
}
static inline uint32_t rpi_sampler_boot_id(rpi_sampler *s) {
    return atomic_load_explicit(&s->boot_id, memory_order_relaxed); /* a number by itself */
}
static inline uint64_t rpi_sampler_forwarded(rpi_sampler *s) {
    return atomic_load_explicit(&s->forwarded, memory_order_acquire); /* pairs with the release: feed slots below are free */
}

/* --- lateness --- */

static inline uint32_t rpi_lateness_bucket(uint64_t ns) {
    if (ns < 1u << RPI_LATE_SUB_BITS) return (uint32_t)ns;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(ns) - RPI_LATE_SUB_BITS;
    uint32_t bucket = ((shift + 1) << RPI_LATE_SUB_BITS) + (uint32_t)((ns >> shift) & ((1u << RPI_LATE_SUB_BITS) - 1));
    return bucket < RPI_LATE_BUCKETS ? bucket : RPI_LATE_BUCKETS - 1;
}

/* Middle of a bucket, ns. */
static inline double rpi_lateness_value(uint32_t bucket) {
    uint32_t sub = bucket & ((1u << RPI_LATE_SUB_BITS) - 1), doubling = bucket >> RPI_LATE_SUB_BITS;
    if (doubling == 0) return bucket;
    return ((double)((1u << RPI_LATE_SUB_BITS) + sub) + 0.5) * (double)(1ull << (doubling - 1));
}

static inline void rpi_sampler_lateness(rpi_sampler *s, int64_t late_ns, uint64_t scans) {
    _Atomic uint64_t *bucket = &s->lateness[rpi_lateness_bucket(late_ns > 0 ? (uint64_t)late_ns : 0)];
    /* relaxed, one writer: see rpi_sampler_get */
    atomic_store_explicit(bucket, atomic_load_explicit(bucket, memory_order_relaxed) + scans, memory_order_relaxed);
    if (late_ns > s->period_ns) rpi_sampler_count(s, RPI_LATE, scans);
}

/* Quantile q in 0..1 of lateness, ns; NAN when nothing was measured. */
static inline double rpi_sampler_quantile(const rpi_sampler *s, double q) {
    uint64_t total = 0, below = 0;
    uint32_t bucket = 0;
    for (uint32_t i = 0; i < RPI_LATE_BUCKETS; i++) total += atomic_load_explicit(&s->lateness[i], memory_order_relaxed);
    if (total == 0) return NAN;
    uint64_t rank = (uint64_t)ceil(q * (double)total);
    rank = rank < 1 ? 1 : rank > total ? total : rank;
    for (; bucket < RPI_LATE_BUCKETS - 1; bucket++) {
        below += atomic_load_explicit(&s->lateness[bucket], memory_order_relaxed);
        if (below >= rank) break;
    }
    return rpi_lateness_value(bucket);
}

/* --- waking the reader --- */

static inline void rpi_sampler_wake(const rpi_sampler *s, uint64_t n) {
    /* a full counter (EAGAIN) has woken its reader already */
    if (s->event_fd >= 0 && write(s->event_fd, &n, sizeof n) < 0) return;
}

static inline void rpi_sampler_notify(rpi_sampler *s, uint64_t head) {
    uint64_t reached = head / s->notify_every;
    if (reached > s->notified) rpi_sampler_wake(s, reached - s->notified);
    s->notified = reached;
}

/* --- streamed --- */

/* Ring index of the board's first scan: its own, or behind what a former producer left, by whole windows. */
static inline void rpi_sampler_place(rpi_sampler *s, uint64_t index) {
    uint64_t head = rpi_ring_head(&s->ring);
    if (head > index) s->base = (head - index + RPI_WINDOW_SCANS - 1) / RPI_WINDOW_SCANS * RPI_WINDOW_SCANS;
    s->notified = (index + s->base) / s->notify_every;
    s->placed = 1;
}

/* Predicted time of a frame's newest scan; takes the arrival into the regression. */
static inline int64_t rpi_sampler_stamp(rpi_sampler *s, uint64_t index, uint64_t ticks, uint32_t n_scans) {
    if (!s->stamped) {
        s->first_ticks = ticks;
        s->first_index = index;
        s->stamped = 1;
    }
    if (index == s->first_index) return s->arrival_ns; /* scans per tick are not known yet */
    double ticks_per_scan = (double)(ticks - s->first_ticks) / (double)(index - s->first_index);
    uint64_t newest = ticks + (uint64_t)((n_scans - 1) * ticks_per_scan + 0.5);
    if (!s->clocked) {
        rpi_board_clock_start(&s->clock, newest, s->arrival_ns, (double)s->period_ns / ticks_per_scan);
        s->clocked = 1;
    }
    rpi_board_clock_add(&s->clock, newest, s->arrival_ns);
    int64_t predicted_ns = rpi_board_clock_predict(&s->clock, newest);
    rpi_sampler_lateness(s, s->arrival_ns - predicted_ns, n_scans);
    return predicted_ns < s->arrival_ns ? predicted_ns : s->arrival_ns; /* no sample is taken after it came */
}

static inline void rpi_sampler_describe(rpi_sampler *s, const rpi_frame *frame) {
    pthread_mutex_lock(&s->description_lock);
    s->description_bytes = frame->payload_bytes;
    memcpy(s->description, frame->payload, frame->payload_bytes);
    pthread_mutex_unlock(&s->description_lock);
}

/* Flags of the scan in `counts`, with its in-band codes counted. */
static inline uint32_t rpi_sampler_codes(rpi_sampler *s) {
    uint64_t saturated = 0, faults = 0;
    for (uint32_t channel = 0; channel < s->ring.n_channels; channel++) {
        int32_t count = s->counts[channel];
        saturated += count == RPI_COUNT_HIGH || count == RPI_COUNT_LOW;
        faults += count == RPI_COUNT_FAULT;
    }
    rpi_sampler_count(s, RPI_SATURATED, saturated);
    rpi_sampler_count(s, RPI_FAULTS, faults);
    return (saturated ? RPI_SCAN_SATURATED : 0) | (faults ? RPI_SCAN_FAULT : 0);
}

static inline void rpi_sampler_scans(rpi_sampler *s, const rpi_frame *frame, uint64_t index, uint64_t ticks) {
    int64_t newest_ns = rpi_sampler_stamp(s, index, ticks, frame->n_scans);
    double ns_per_scan = s->clocked ? (double)s->period_ns * (1 + s->clock.slope * 1e-9) : (double)s->period_ns;
    double ticks_per_scan = s->clocked ? (double)s->period_ns / s->clock.ns_per_tick : 0; /* 0: not known in the first frame */
    for (uint32_t k = 0; k < frame->n_scans; k++) {
        uint32_t flags = (rpi_frame_scan(frame, k, s->counts) ? rpi_sampler_codes(s) : 0) | s->begins;
        int64_t t_ns = newest_ns - (int64_t)((frame->n_scans - 1 - k) * ns_per_scan);
        if (t_ns <= s->last_ns) t_ns = s->last_ns + 1; /* a corrected line must not turn time back */
        s->last_ns = t_ns;
        rpi_ring_push(&s->ring, index + k, t_ns, ticks + (uint64_t)(k * ticks_per_scan + 0.5), frame->status, flags, s->counts);
        s->begins = 0;
    }
    rpi_sampler_count(s, RPI_RECEIVED, frame->n_scans);
}

static inline void rpi_sampler_frame(void *context, const rpi_frame *frame) {
    rpi_sampler *s = (rpi_sampler *)context;
    uint64_t index, ticks, lost;
    int ours = frame->board_id == s->board_id;
    if (ours && frame->type == RPI_FRAME_DESCRIPTION) { /* even of a board of another shape: it tells what is wrong */
        rpi_sampler_describe(s, frame);
        return;
    }
    if (!ours || frame->n_channels != s->ring.n_channels) {
        rpi_sampler_count(s, RPI_FOREIGN, 1);
        return;
    }
    int kind = rpi_timeline_extend(&s->timeline, frame, &index, &ticks, &lost);
    if (kind == RPI_REPEAT) {
        rpi_sampler_count(s, RPI_REPEATED, frame->n_scans);
        return;
    }
    if (kind == RPI_REBOOT) {
        rpi_sampler_count(s, RPI_REBOOTS, 1);
        s->stamped = s->clocked = 0; /* its ticks start anywhere */
        s->begins = RPI_SCAN_FIRST;
    }
    if (!s->placed) rpi_sampler_place(s, index);
    atomic_store_explicit(&s->boot_id, frame->boot_id, memory_order_relaxed); /* a number by itself */
    rpi_sampler_count(s, RPI_LOST, lost);
    rpi_sampler_set(s, RPI_OVERFLOW, s->timeline.dropped);
    rpi_sampler_scans(s, frame, index + s->base, ticks);
    rpi_sampler_notify(s, index + s->base + frame->n_scans);
}

/* Host time of the record at hand, which the line through the timestamps has placed. */
static inline int64_t rpi_sampler_record_ns(rpi_sampler *s) {
    int64_t t_ns = s->clocked ? rpi_board_clock_predict(&s->clock, (uint64_t)s->line.stamp_ns)
                              : s->arrival_ns - (int64_t)s->behind * s->period_ns;
    if (t_ns > s->arrival_ns) t_ns = s->arrival_ns; /* no sample is taken after it came */
    if (t_ns <= s->last_ns) t_ns = s->last_ns + 1;
    return s->last_ns = t_ns;
}

static inline void rpi_sampler_record(void *context, const uint8_t *record) {
    rpi_sampler *s = (rpi_sampler *)context;
    uint64_t index, lost;
    s->behind--;
    int kind = s->layout.stamp_offset < 0 ? rpi_stamp_without(&s->line, &index, &lost)
                                          : rpi_stamp_extend(&s->line, rpi_scan_stamp(&s->layout, record), &index, &lost);
    if (kind == RPI_REPEAT) {
        rpi_sampler_count(s, RPI_REPEATED, 1);
        return;
    }
    if (kind == RPI_REBOOT) {
        rpi_sampler_count(s, RPI_REBOOTS, 1);
        s->clocked = 0;
        s->begins = RPI_SCAN_FIRST;
    }
    if (!s->placed) rpi_sampler_place(s, index);
    rpi_scan_counts(&s->layout, record, s->counts); /* channels that no element has stay 0 */
    uint32_t flags = rpi_sampler_codes(s) | s->begins;
    rpi_ring_push(&s->ring, index + s->base, rpi_sampler_record_ns(s), (uint64_t)s->line.stamp_ns, 0, flags, s->counts);
    s->begins = 0;
    rpi_sampler_count(s, RPI_LOST, lost);
    rpi_sampler_count(s, RPI_RECEIVED, 1);
}

/* All records of a read came together, so only the newest tells something of the path's delay. */
static inline void rpi_sampler_feed_records(rpi_sampler *s, const uint8_t *bytes, size_t n) {
    const uint64_t before = rpi_sampler_get(s, RPI_RECEIVED);
    s->behind = (s->pieces.held + n) / s->layout.bytes;
    rpi_scan_feed(&s->pieces, s->layout.bytes, bytes, n, rpi_sampler_record, s);
    const uint64_t scans = rpi_sampler_get(s, RPI_RECEIVED) - before, newest = (uint64_t)s->line.stamp_ns;
    if (!scans) return;
    if (!s->clocked) rpi_board_clock_start(&s->clock, newest, s->arrival_ns, 1.0);
    s->clocked = 1;
    rpi_board_clock_add(&s->clock, newest, s->arrival_ns);
    rpi_sampler_lateness(s, s->arrival_ns - rpi_board_clock_predict(&s->clock, newest), scans);
    rpi_sampler_notify(s, rpi_ring_head(&s->ring));
}

static inline void rpi_sampler_feed(rpi_sampler *s, const uint8_t *bytes, size_t n) {
    if (s->layout.bytes) {
        rpi_sampler_feed_records(s, bytes, n);
        return;
    }
    rpi_decoder_feed(&s->decoder, bytes, n, rpi_sampler_frame, s);
    rpi_sampler_set(s, RPI_CORRUPT, s->decoder.crc_errors + s->decoder.format_errors);
    rpi_sampler_set(s, RPI_RESYNC_BYTES, s->decoder.resync_bytes);
}

static inline void rpi_sampler_disconnect(rpi_sampler *s) {
    const uint8_t delimiter = 0;
    s->fd = -1;
    if (s->layout.bytes) { /* what was cut must not be glued to what comes after the re-plug */
        rpi_sampler_count(s, RPI_RESYNC_BYTES, s->pieces.held);
        s->pieces.held = 0;
    } else {
        rpi_sampler_feed(s, &delimiter, 1);
        s->decoder.synced = 0; /* it may begin within a frame, and that is no damage */
    }
    s->line.reopened = 1;
    rpi_sampler_count(s, RPI_DISCONNECTS, 1);
    atomic_store_explicit(&s->connected, 0, memory_order_release); /* the descriptor is not touched any more */
    rpi_sampler_wake(s, 1);
}

/* One read of a descriptor that poll has called readable. Returns the bytes; 0 = nothing now, or hung up. */
static inline size_t rpi_sampler_read(rpi_sampler *s, int hung_up) {
    ssize_t n = read(s->fd, s->bytes, sizeof s->bytes);
    if (n > 0) {
        s->arrival_ns = rpi_now_ns();
        s->empty_reads = 0;
        rpi_sampler_count(s, RPI_BYTES_IN, (uint64_t)n);
        rpi_sampler_feed(s, s->bytes, (size_t)n);
        return (size_t)n;
    }
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return 0;
    /* no bytes: the end of a pipe, but a raw terminal (VMIN 0) may say so in passing */
    if (n < 0 || hung_up || !isatty(s->fd) || ++s->empty_reads > RPI_EMPTY_READS_MAX) rpi_sampler_disconnect(s);
    return 0;
}

/* Before stopping: all that had arrived, but not what a board goes on sending. */
static inline void rpi_sampler_drain(rpi_sampler *s) {
    int waiting = 0;
    size_t limit = RPI_DRAIN_BYTES, taken = 0;
    if (s->fd < 0) return;
    if (ioctl(s->fd, FIONREAD, &waiting) == 0 && (size_t)waiting > limit) limit = (size_t)waiting;
    while (s->fd >= 0 && taken < limit) {
        struct pollfd port = {.fd = s->fd, .events = POLLIN};
        if (poll(&port, 1, 0) <= 0) return;
        taken += rpi_sampler_read(s, port.revents & (POLLHUP | POLLERR | POLLNVAL));
    }
}

static inline void rpi_sampler_control(rpi_sampler *s) {
    uint64_t ignored;
    if (read(s->control_fd, &ignored, sizeof ignored) < 0) return;
    /* acquire: what the owner wrote before it rang is seen */
    int fd = atomic_exchange_explicit(&s->attach_fd, -1, memory_order_acquire);
    if (fd < 0) return;
    s->fd = fd;
    s->empty_reads = 0;
    atomic_store_explicit(&s->connected, 1, memory_order_release); /* pairs with the owner's acquire */
    sem_post(&s->done);
}

static inline void rpi_sampler_run_streamed(rpi_sampler *s) {
    /* acquire: pairs with stop */
    while (!atomic_load_explicit(&s->stopping, memory_order_acquire)) {
        struct pollfd fds[2] = {{.fd = s->control_fd, .events = POLLIN}, {.fd = s->fd, .events = POLLIN}};
        rpi_sampler_turn(s);
        if (poll(fds, 2, RPI_TURN_MS) < 0) continue; /* EINTR */
        if (fds[1].revents) rpi_sampler_read(s, fds[1].revents & (POLLHUP | POLLERR | POLLNVAL));
        if (fds[0].revents) rpi_sampler_control(s);
    }
    rpi_sampler_drain(s);
}

/* --- paced --- */

/* Scan `from` of the feed, at its deadline, as scan `to` of the ring. */
static inline void rpi_sampler_forward(rpi_sampler *s, uint64_t from, uint64_t to, int64_t deadline_ns) {
    rpi_scan *scan = (rpi_scan *)(void *)s->bytes;
    if (!rpi_ring_read(&s->feed, from, scan)) {
        rpi_sampler_count(s, RPI_STARVED, 1);
        return;
    }
    rpi_ring_push(&s->ring, to, deadline_ns, (uint64_t)deadline_ns, scan->status, scan->flags | s->begins, scan->counts);
    s->begins = 0;
    rpi_sampler_count(s, RPI_RECEIVED, 1);
}

static inline void rpi_sampler_run_paced(rpi_sampler *s) {
    uint64_t head = rpi_ring_head(&s->ring), from = atomic_load_explicit(&s->forwarded, memory_order_relaxed);
    uint64_t to = (head + RPI_WINDOW_SCANS - 1) / RPI_WINDOW_SCANS * RPI_WINDOW_SCANS;
    int64_t deadline_ns = rpi_now_ns() + s->period_ns;
    s->notified = to / s->notify_every;
    for (;; from++, to++, deadline_ns += s->period_ns) {
        struct timespec deadline = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) {}
        rpi_sampler_turn(s);
        rpi_sampler_lateness(s, rpi_now_ns() - deadline_ns, 1);
        rpi_sampler_forward(s, from, to, deadline_ns);
        atomic_store_explicit(&s->forwarded, from + 1, memory_order_release); /* its slot in the feed is free */
        rpi_sampler_notify(s, to + 1);
        /* acquire: pairs with stop. Deadlines that have passed are still served, only the next is not waited for */
        if (atomic_load_explicit(&s->stopping, memory_order_acquire) && rpi_now_ns() < deadline_ns + s->period_ns) return;
    }
}

/* --- the thread --- */

/* Whether later mappings may be locked without running into RLIMIT_MEMLOCK, which would make them fail. */
static inline int rpi_may_lock_all(void) {
    struct { uint32_t version; int pid; } header = {0x20080522, 0}; /* _LINUX_CAPABILITY_VERSION_3 */
    struct { uint32_t effective, permitted, inheritable; } data[2] = {{0}};
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) return 1;
    return syscall(SYS_capget, &header, data) == 0 && (data[0].effective >> RPI_CAP_IPC_LOCK_BIT & 1);
}

static inline void rpi_sampler_schedule(rpi_sampler *s) {
    struct sched_param fifo = {.sched_priority = s->priority};
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); /* without FIFO the kernel would add 50 us to every sleep */
    s->fifo_errno = s->priority > 0 ? pthread_setschedparam(pthread_self(), SCHED_FIFO, &fifo) : 0;
    if (!s->lock_memory) return;
    s->lock_future = rpi_may_lock_all();
    s->lock_errno = mlockall(MCL_CURRENT | MCL_ONFAULT | (s->lock_future ? MCL_FUTURE : 0)) ? errno : 0;
}

static inline void *rpi_sampler_main(void *context) {
    rpi_sampler *s = (rpi_sampler *)context;
    pthread_setname_np(pthread_self(), "rpi-sampler");
    s->thread_id = (int)syscall(SYS_gettid);
    rpi_sampler_schedule(s);
    sem_post(&s->done);
    if (s->paced)
        rpi_sampler_run_paced(s);
    else
        rpi_sampler_run_streamed(s);
    atomic_store_explicit(&s->connected, 0, memory_order_release); /* the descriptor is not touched any more */
    return NULL;
}

static inline void rpi_sampler_await(rpi_sampler *s) {
    while (sem_wait(&s->done) < 0) {} /* EINTR */
}

/* Returns 0 or an errno. The rings, event_fd, priority and the like are set; streamed from `fd`, paced from scan `first`. */
static inline int rpi_sampler_start(rpi_sampler *s, int fd, uint64_t first) {
    sigset_t all, before;
    pthread_attr_t attributes;
    s->fd = fd;
    s->connected = 1;
    s->attach_fd = -1;
    s->forwarded = first;
    s->begins = RPI_SCAN_FIRST;
    rpi_decoder_init(&s->decoder);
    rpi_timeline_init(&s->timeline);
    rpi_stamp_begin(&s->line, (double)s->period_ns);
    s->control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->control_fd < 0) return errno;
    sem_init(&s->done, 0, 0);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, RPI_STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the interpreter's thread; ours inherits the mask */
    int error = pthread_create(&s->thread, &attributes, rpi_sampler_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error) close(s->control_fd);
    if (!error) rpi_sampler_await(s);
    return error;
}

static inline void rpi_sampler_ring_bell(const rpi_sampler *s) {
    uint64_t one = 1;
    if (write(s->control_fd, &one, sizeof one) < 0) return; /* EAGAIN: it rings already */
}

static inline void rpi_sampler_attach(rpi_sampler *s, int fd) {
    atomic_store_explicit(&s->attach_fd, fd, memory_order_release); /* pairs with the exchange in control */
    rpi_sampler_ring_bell(s);
    rpi_sampler_await(s);
}

/* Returns when every byte that had been received is in the ring. */
static inline void rpi_sampler_stop(rpi_sampler *s) {
    atomic_store_explicit(&s->stopping, 1, memory_order_release); /* pairs with the thread's acquire */
    rpi_sampler_ring_bell(s);
    pthread_join(s->thread, NULL);
    sem_destroy(&s->done);
    close(s->control_fd);
}

#endif
