/* One-producer ring of scans over caller-owned memory. The producer never waits; readers are passive and validate.
 *
 * Contract: exactly one producer thread. Any number of readers, in any process that maps the same memory. A reader
 * takes what lies below `head`, uses it in place, and then asks rpi_ring_intact(): if that says no, what it read may
 * have been overwritten while it read and must be thrown away.
 *
 * A scan's place is its 64-bit index modulo the capacity: the index is the time. A lost scan is never written; its
 * slot still carries an older index, and that mismatch is what "missing" means. So a gap of any size costs nothing.
 */
#ifndef RPI_SPSC_H
#define RPI_SPSC_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define RPI_RING_MAGIC 0x31474E4952495052ULL /* "RPIRING1", little-endian */
#define RPI_RING_VERSION 1u
#define RPI_RING_HEADER_BYTES 4096u
#define RPI_CACHE_LINE 64u

typedef struct {
    uint64_t index;     /* 64-bit scan index; equals the slot's expected index or the scan is missing */
    int64_t t_mono_ns;  /* CLOCK_MONOTONIC time of the scan */
    uint64_t ticks;     /* board clock, extended to 64 bits (host ns for paced sources) */
    uint32_t status;    /* board status bits, as sent */
    uint32_t flags;     /* host flags: RPI_SCAN_* */
    int32_t counts[];   /* one per channel */
} rpi_scan;

#define RPI_SCAN_SATURATED 1u

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t n_channels;
    uint64_t capacity;   /* scans */
    uint64_t slot_bytes;
    uint32_t rate_hz;
    uint32_t reserved;
    char pad0[RPI_CACHE_LINE - 40];
    _Atomic uint64_t claim; /* one past the index that the producer may be writing now */
    char pad1[RPI_CACHE_LINE - 8];
    _Atomic uint64_t head;  /* one past the newest complete index */
    char pad2[RPI_CACHE_LINE - 8];
} rpi_ring_header;

typedef struct {
    rpi_ring_header *header;
    char *slots;
    uint64_t capacity;
    uint64_t slot_bytes;
    uint32_t n_channels;
} rpi_ring;

static inline uint64_t rpi_ring_slot_bytes(uint32_t n_channels) {
    return (sizeof(rpi_scan) + 4u * (uint64_t)n_channels + 7u) & ~7ull;
}

static inline uint64_t rpi_ring_bytes(uint32_t n_channels, uint64_t capacity) {
    return RPI_RING_HEADER_BYTES + capacity * rpi_ring_slot_bytes(n_channels);
}

static inline rpi_scan *rpi_ring_slot(const rpi_ring *ring, uint64_t index) {
    return (rpi_scan *)(ring->slots + (index % ring->capacity) * ring->slot_bytes);
}

static inline void rpi_ring_attach(rpi_ring *ring, void *memory) {
    ring->header = (rpi_ring_header *)memory;
    ring->slots = (char *)memory + RPI_RING_HEADER_BYTES;
    ring->capacity = ring->header->capacity;
    ring->slot_bytes = ring->header->slot_bytes;
    ring->n_channels = ring->header->n_channels;
}

static inline void rpi_ring_create(rpi_ring *ring, void *memory, uint32_t n_channels, uint64_t capacity, uint32_t rate_hz) {
    rpi_ring_header *header = (rpi_ring_header *)memory;
    memset(header, 0, RPI_RING_HEADER_BYTES);
    header->version = RPI_RING_VERSION;
    header->n_channels = n_channels;
    header->capacity = capacity;
    header->slot_bytes = rpi_ring_slot_bytes(n_channels);
    header->rate_hz = rate_hz;
    header->magic = RPI_RING_MAGIC;
    rpi_ring_attach(ring, memory);
    for (uint64_t i = 0; i < capacity; i++) rpi_ring_slot(ring, i)->index = UINT64_MAX;
}

/* Producer only. `index` must not be below head. */
static inline rpi_scan *rpi_ring_claim(rpi_ring *ring, uint64_t index) {
    atomic_store_explicit(&ring->header->claim, index + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* the claim is seen before any byte of the slot changes */
    return rpi_ring_slot(ring, index);
}

static inline void rpi_ring_publish(rpi_ring *ring, uint64_t index) {
    /* release: a reader that sees this head sees the whole scan */
    atomic_store_explicit(&ring->header->head, index + 1, memory_order_release);
}

static inline uint64_t rpi_ring_head(const rpi_ring *ring) {
    return atomic_load_explicit(&ring->header->head, memory_order_acquire); /* pairs with publish */
}

/* After reading scans from `first` on: were none of them overwritten meanwhile? */
static inline int rpi_ring_intact(const rpi_ring *ring, uint64_t first) {
    atomic_thread_fence(memory_order_acquire); /* the reads above stay above; pairs with the fence in claim */
    uint64_t claim = atomic_load_explicit(&ring->header->claim, memory_order_relaxed);
    return claim <= first + ring->capacity;
}

#endif
