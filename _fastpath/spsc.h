/* One-producer ring of scans over caller-owned memory. The producer never waits; readers are passive and validate.
 *
 * Contract: exactly one producer thread. Any number of readers, in any process that maps the same memory, read-only if
 * they like. A reader takes what lies below `head`, uses it in place, and then asks rpi_ring_intact(): if that says no,
 * what it read may have been overwritten while it read and must be thrown away.
 *
 * A scan's place is its 64-bit index modulo the capacity: the index is the time. A lost scan is never written; its
 * slot still carries an older index, and that mismatch is what "missing" means. So a gap of any size costs nothing.
 *
 * A scan may be overwritten while it is read, so its words are stored and loaded as relaxed atomics: what a reader gets
 * then is a mixture, but a defined one, and rpi_ring_intact() tells. Read with rpi_scan_*() or rpi_ring_read(). A
 * reader that uses plain (vector) loads, as NumPy does, stays right only because it discards what is not intact.
 */
#ifndef RPI_SPSC_H
#define RPI_SPSC_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RPI_RING_MAGIC 0x31474E4952495052ULL /* "RPIRING1", little-endian */
#define RPI_RING_VERSION 1u
#define RPI_RING_HEADER_BYTES 4096u
#define RPI_RING_MAX_CHANNELS 65535u
#define RPI_CACHE_LINE 64u
#define RPI_NO_INDEX UINT64_MAX /* in a slot that holds no scan */

#ifdef __clang__
#define RPI_UNROLL _Pragma("unroll 8")
#else
#define RPI_UNROLL _Pragma("GCC unroll 8") /* atomics are neither vectorised nor unrolled by themselves: twice as fast */
#endif

typedef uint64_t __attribute__((may_alias)) rpi_word; /* a scan is moved as whole words, whatever its fields are */

typedef struct {
    uint64_t index;     /* 64-bit scan index; equals the slot's expected index or the scan is missing */
    int64_t t_mono_ns;  /* CLOCK_MONOTONIC time of the scan */
    uint64_t ticks;     /* board clock, extended to 64 bits (host ns for paced sources) */
    uint32_t status;    /* board status bits, as sent */
    uint32_t flags;     /* host flags: RPI_SCAN_* */
    int32_t counts[];   /* one per channel; padded with a zero to a whole word */
} rpi_scan;

#define RPI_SCAN_SATURATED 1u /* some count is a saturation code */
#define RPI_SCAN_FAULT 2u     /* some count is the channel-fault code */
#define RPI_SCAN_FIRST 4u     /* first after a start or a board's reboot: its index says nothing on the time since the last */

typedef struct {
    _Atomic uint64_t magic; /* written last: whoever sees it sees the rest */
    uint32_t version;
    uint32_t n_channels;
    uint64_t capacity; /* scans */
    uint64_t slot_bytes;
    uint32_t rate_hz;
    uint32_t reserved;
    char pad0[RPI_CACHE_LINE - 40];
    _Atomic uint64_t claim; /* one past the index that the producer may be writing now */
    char pad1[RPI_CACHE_LINE - 8];
    _Atomic uint64_t head; /* one past the newest complete index */
    char pad2[RPI_CACHE_LINE - 8];
} rpi_ring_header;

_Static_assert(sizeof(rpi_ring_header) == 3 * RPI_CACHE_LINE, "readers poll head, not the line that claim lives on");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock in shared memory would not be shared");

typedef struct {
    rpi_ring_header *header;
    char *slots;
    uint64_t capacity;
    uint64_t reciprocal; /* of capacity, for rpi_ring_place */
    uint64_t slot_bytes;
    uint32_t n_channels;
} rpi_ring;

enum rpi_ring_fault { RPI_RING_OK, RPI_RING_NOT_A_RING, RPI_RING_OTHER_VERSION, RPI_RING_BAD_SHAPE, RPI_RING_TOO_SHORT };

static inline uint64_t rpi_ring_slot_bytes(uint32_t n_channels) {
    return (sizeof(rpi_scan) + 4u * (uint64_t)n_channels + 7u) & ~7ull;
}

static inline uint64_t rpi_ring_bytes(uint32_t n_channels, uint64_t capacity) {
    return RPI_RING_HEADER_BYTES + capacity * rpi_ring_slot_bytes(n_channels);
}

/* index % capacity; a division would cost more than all the rest of a push. */
static inline uint64_t rpi_ring_place(const rpi_ring *ring, uint64_t index) {
#ifdef __SIZEOF_INT128__
    uint64_t quotient = (uint64_t)(((unsigned __int128)index * ring->reciprocal) >> 64); /* too small by 2 at most */
    uint64_t place = index - quotient * ring->capacity;
    while (place >= ring->capacity) place -= ring->capacity;
    return place;
#else
    return index % ring->capacity;
#endif
}

static inline rpi_scan *rpi_ring_slot(const rpi_ring *ring, uint64_t index) {
    return (rpi_scan *)(ring->slots + rpi_ring_place(ring, index) * ring->slot_bytes);
}

/* Whether `bytes` of memory hold a ring that this code can read. */
static inline enum rpi_ring_fault rpi_ring_check(void *memory, uint64_t bytes) {
    rpi_ring_header *header = (rpi_ring_header *)memory;
    if (bytes < RPI_RING_HEADER_BYTES) return RPI_RING_TOO_SHORT;
    /* acquire: pairs with create, the fields below are complete once the magic is there */
    if (atomic_load_explicit(&header->magic, memory_order_acquire) != RPI_RING_MAGIC) return RPI_RING_NOT_A_RING;
    if (header->version != RPI_RING_VERSION) return RPI_RING_OTHER_VERSION;
    if (header->n_channels == 0 || header->n_channels > RPI_RING_MAX_CHANNELS || header->capacity == 0 ||
        header->slot_bytes != rpi_ring_slot_bytes(header->n_channels))
        return RPI_RING_BAD_SHAPE;
    /* divided, not multiplied: a damaged capacity must not wrap around into a fitting size */
    if (header->capacity > (bytes - RPI_RING_HEADER_BYTES) / header->slot_bytes) return RPI_RING_TOO_SHORT;
    return RPI_RING_OK;
}

/* Only after rpi_ring_check() or rpi_ring_create(). */
static inline void rpi_ring_attach(rpi_ring *ring, void *memory) {
    ring->header = (rpi_ring_header *)memory;
    ring->slots = (char *)memory + RPI_RING_HEADER_BYTES;
    ring->capacity = ring->header->capacity;
    ring->reciprocal = UINT64_MAX / ring->capacity;
    ring->slot_bytes = ring->header->slot_bytes;
    ring->n_channels = ring->header->n_channels;
}

static inline void rpi_ring_create(rpi_ring *ring, void *memory, uint32_t n_channels, uint64_t capacity, uint32_t rate_hz) {
    rpi_ring_header *header = (rpi_ring_header *)memory;
    memset(memory, 0, RPI_RING_HEADER_BYTES);
    header->version = RPI_RING_VERSION;
    header->n_channels = n_channels;
    header->capacity = capacity;
    header->slot_bytes = rpi_ring_slot_bytes(n_channels);
    header->rate_hz = rate_hz;
    rpi_ring_attach(ring, memory);
    for (uint64_t i = 0; i < capacity; i++) rpi_ring_slot(ring, i)->index = RPI_NO_INDEX;
    /* release: see rpi_ring_check */
    atomic_store_explicit(&header->magic, RPI_RING_MAGIC, memory_order_release);
}

/* A new producer takes over a ring whose producer has died, maybe in the middle of a scan: that scan never was. */
static inline void rpi_ring_take_over(rpi_ring *ring) {
    uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed); /* no other producer lives */
    uint64_t claim = atomic_load_explicit(&ring->header->claim, memory_order_relaxed);
    if (claim > head) __atomic_store_n(&rpi_ring_slot(ring, claim - 1)->index, RPI_NO_INDEX, __ATOMIC_RELAXED);
}

static inline uint64_t rpi_ring_head(const rpi_ring *ring) {
    return atomic_load_explicit(&ring->header->head, memory_order_acquire); /* pairs with the release in push */
}

/* Producer only. `index` must not be below head. `counts` holds n_channels values. */
static inline void rpi_ring_push(rpi_ring *ring, uint64_t index, int64_t t_mono_ns, uint64_t ticks, uint32_t status,
                                 uint32_t flags, const int32_t *counts) {
    rpi_scan *scan = rpi_ring_slot(ring, index);
    rpi_word *words = (rpi_word *)(void *)scan->counts;
    uint32_t pairs = ring->n_channels / 2;
    uint64_t word;
    atomic_store_explicit(&ring->header->claim, index + 1, memory_order_relaxed); /* ordered by the fence */
    atomic_thread_fence(memory_order_release); /* the claim is seen before any byte of the slot changes */
    /* relaxed: head orders them for whoever reads below it, claim tells whoever reads too late */
    __atomic_store_n(&scan->index, index, __ATOMIC_RELAXED);
    __atomic_store_n(&scan->t_mono_ns, t_mono_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&scan->ticks, ticks, __ATOMIC_RELAXED);
    __atomic_store_n((rpi_word *)(void *)&scan->status, (uint64_t)flags << 32 | status, __ATOMIC_RELAXED);
    RPI_UNROLL
    for (uint32_t i = 0; i < pairs; i++) {
        memcpy(&word, counts + 2 * i, 8);
        __atomic_store_n(words + i, word, __ATOMIC_RELAXED);
    }
    if (ring->n_channels & 1) __atomic_store_n(words + pairs, (uint64_t)(uint32_t)counts[2 * pairs], __ATOMIC_RELAXED);
    /* release: a reader that sees this head sees the whole scan */
    atomic_store_explicit(&ring->header->head, index + 1, memory_order_release);
}

/* After reading scans from `first` on: were none of them overwritten meanwhile? */
static inline int rpi_ring_intact(const rpi_ring *ring, uint64_t first) {
    atomic_thread_fence(memory_order_acquire); /* the reads above stay above; pairs with the fence in push */
    uint64_t claim = atomic_load_explicit(&ring->header->claim, memory_order_relaxed); /* ordered by the fence */
    return claim <= ring->capacity || claim - ring->capacity <= first;
}

/* Reading in place; the values count only if rpi_ring_intact() says so afterwards. */
static inline uint64_t rpi_scan_index(const rpi_scan *scan) { return __atomic_load_n(&scan->index, __ATOMIC_RELAXED); }
static inline int64_t rpi_scan_time(const rpi_scan *scan) { return __atomic_load_n(&scan->t_mono_ns, __ATOMIC_RELAXED); }
static inline uint64_t rpi_scan_ticks(const rpi_scan *scan) { return __atomic_load_n(&scan->ticks, __ATOMIC_RELAXED); }
static inline uint32_t rpi_scan_status(const rpi_scan *scan) { return __atomic_load_n(&scan->status, __ATOMIC_RELAXED); }
static inline uint32_t rpi_scan_flags(const rpi_scan *scan) { return __atomic_load_n(&scan->flags, __ATOMIC_RELAXED); }
static inline int32_t rpi_scan_count(const rpi_scan *scan, uint32_t channel) {
    return __atomic_load_n(&scan->counts[channel], __ATOMIC_RELAXED);
}

static inline void rpi_scan_copy(const rpi_ring *ring, const rpi_scan *scan, void *out) {
    const rpi_word *from = (const rpi_word *)(const void *)scan;
    rpi_word *to = (rpi_word *)out;
    const uint64_t n = ring->slot_bytes / 8;
    RPI_UNROLL
    for (uint64_t i = 0; i < n; i++) to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

/* Copy of one scan (slot_bytes at `out`, aligned to 8). 0 if it is missing, not yet there, or was overwritten. */
static inline int rpi_ring_read(const rpi_ring *ring, uint64_t index, void *out) {
    if (index >= rpi_ring_head(ring)) return 0;
    rpi_scan_copy(ring, rpi_ring_slot(ring, index), out);
    return ((const rpi_scan *)out)->index == index && rpi_ring_intact(ring, index);
}

/* How many of the scans first .. first + n - 1 are not in the ring (lost, overwritten, or not yet there). */
static inline uint64_t rpi_ring_missing(const rpi_ring *ring, uint64_t first, uint64_t n) {
    uint64_t missing = 0, head = rpi_ring_head(ring);
    for (uint64_t index = first; index < first + n; index++)
        missing += index >= head || rpi_scan_index(rpi_ring_slot(ring, index)) != index || !rpi_ring_intact(ring, index);
    return missing;
}

/* Reading scan by scan, in place. Exact: popped + lost always equals the distance that the reader has gone. */
typedef struct {
    const rpi_ring *ring;
    uint64_t next; /* index of the scan to read next */
    uint64_t lost; /* scans passed over: never written, or overwritten before or while they were read */
} rpi_reader;

/* The next scan, to be used in place until rpi_reader_pop(); NULL when the reader has caught up. */
static inline const rpi_scan *rpi_reader_front(rpi_reader *reader) {
    uint64_t head = rpi_ring_head(reader->ring), capacity = reader->ring->capacity;
    if (head > capacity && reader->next < head - capacity) { /* lapped: what is gone is counted and passed over */
        reader->lost += head - capacity - reader->next;
        reader->next = head - capacity;
    }
    for (; reader->next < head; reader->next++, reader->lost++) {
        const rpi_scan *scan = rpi_ring_slot(reader->ring, reader->next);
        if (rpi_scan_index(scan) == reader->next) return scan;
    }
    return NULL;
}

/* Done with the scan of rpi_reader_front(). 0: it was overwritten meanwhile, forget what was read (counted as lost). */
static inline int rpi_reader_pop(rpi_reader *reader) {
    int intact = rpi_ring_intact(reader->ring, reader->next);
    reader->next++;
    reader->lost += !intact;
    return intact;
}

/* Front, copy, pop, until a scan came through whole. 0: caught up. */
static inline int rpi_reader_take(rpi_reader *reader, void *out) {
    for (const rpi_scan *scan; (scan = rpi_reader_front(reader));) {
        rpi_scan_copy(reader->ring, scan, out);
        if (rpi_reader_pop(reader)) return 1;
    }
    return 0;
}

#endif
