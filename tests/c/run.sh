#!/bin/sh
# Build and run the C tests: run.sh plain | address | thread | aarch64 [COMPILER]. Exits 0 only if all pass.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mode=${1:-plain}
cc=${2:-cc}
scans=100000
tests="ring sampler window frames scans experts"
flags="-std=gnu11 -g -O2 -Wall -Wextra -Werror"
run=
case $mode in
    plain) ;;
    address) flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=all" ;;
    # Fences are not modelled by ThreadSanitizer; every word that is shared is atomic, so it needs none to find no race.
    # The window kernel reads with vectors (see spsc.h), which ThreadSanitizer takes for a race although they are discarded.
    thread) flags="$flags -fsanitize=thread -Wno-tsan -Wno-unknown-warning-option" scans=30000 tests="ring sampler" ;;
    aarch64) cc=${2:-aarch64-linux-gnu-gcc} flags="$flags -static" run=qemu-aarch64 scans=30000 ;;
    *) echo "run.sh plain | address | thread | aarch64 [COMPILER]" >&2; exit 2 ;;
esac
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for test in $tests; do
    # shellcheck disable=SC2086  # flags and run are lists
    $cc $flags -o "$out/$test" "$here/${test}_test.c" -lpthread -lm
    # shellcheck disable=SC2086
    TSAN_OPTIONS=halt_on_error=1 timeout 120 $run "$out/$test" $scans
done
