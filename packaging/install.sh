#!/usr/bin/env bash
# install.sh install|uninstall: the service below PREFIX (/usr/local), run by PYTHON (/usr/bin/python3). With DESTDIR only files are
# put there; without it users, folders and units are set up too, and the limits that were found on the PDUs go back at uninstall.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
. packaging/tree.sh
what=${1:-}
root=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
python=$(readlink -f "$(command -v "${PYTHON:-/usr/bin/python3}")")
etc=/etc/rpi-daemon
extras=train,redfish,hosts

say() { printf '%s\n' "$*"; }
fail() { say "install.sh: $*" >&2; exit 1; }

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root: sudo make $what"
[ ! -e /var/lib/dpkg/info/rpi-daemon.list ] || [ -n "$root" ] || fail "the Debian package rpi-daemon is installed: use apt"

install_all() {
    local wheel
    case $python in /root/* | /home/*) fail "$python: the service cannot see home folders; name another Python: PYTHON=/usr/bin/python3" ;; esac
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT # so it is no local name
    "$python" -m venv "$work/venv" || fail "$python has no venv: apt install python3-venv"
    wheel=$(ls dist/rpi_daemon-*.whl 2> /dev/null | tail -1) || true
    [ -n "$wheel" ] || fail "no wheel in dist: make wheel (as yourself, not as root)"
    stop_service
    tree "$root" "$prefix" "$python" "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "$work/venv/bin/pip" "$wheel[$extras]"
    "$python" -m compileall -q -j 0 "$root$prefix/lib/rpi-daemon/lib" > /dev/null || true
    units "$root" "$prefix" "$prefix/lib/systemd/system" "$prefix/lib/udev/rules.d"
    documents "$root$prefix/share/doc/rpi-daemon" "$python"
    [ -z "$root" ] || return 0
    systemd-sysusers rpi-daemon.conf
    systemd-tmpfiles --create rpi-daemon.conf
    [ -e $etc/rpi-daemon.toml ] || made=yes
    [ -z "${made:-}" ] || install -m 640 -g rpi-daemon packaging/rpi-daemon.toml $etc/rpi-daemon.toml
    systemctl daemon-reload
    ! command -v udevadm > /dev/null || udevadm control --reload
    if [ -n "${made:-}" ]; then
        say "Installed. Now change $etc/rpi-daemon.toml: PDUs, outlets, ratings; pass phrases are files of $etc/credentials."
        say "Then: rpi-daemon check-config && systemctl enable --now rpi-daemon"
    elif [ -n "$ran" ]; then
        systemctl reset-failed rpi-daemon 2> /dev/null || true # its start limit was the old version's
        systemctl start rpi-daemon
        say "Installed and started again, with $etc/rpi-daemon.toml as it was."
    else
        say "Installed; $etc/rpi-daemon.toml is as it was. Start it: systemctl enable --now rpi-daemon"
    fi
}

stop_service() {
    ran=
    [ -z "$root" ] || return 0
    # also one that was given up, and waits for the failsafe unit to start it again: it may be what the upgrade repairs
    ! systemctl show --property=ActiveState --value rpi-daemon.service rpi-daemon-failsafe.service \
        | grep -Eqx 'active|activating|reloading' || ran=yes
    # one after the other: a stop that a PDU did not take begins the failsafe unit, which holds the PDUs and starts the daemon again
    systemctl stop rpi-daemon 2> /dev/null || true
    systemctl stop rpi-daemon-failsafe rpi-daemon-retrain.socket 2> /dev/null || true
}

uninstall_all() {
    if [ -z "$root" ]; then
        systemctl disable --quiet rpi-daemon 2> /dev/null || true
        stop_service
        if [ -e /var/lib/rpi-daemon/found-limits.json ] && ! "$prefix/bin/rpi-daemon" limit restore --offline; then
            [ -n "${FORCE:-}" ] || fail "the limits found on the PDUs are not all back, see above; nothing was removed (FORCE=1 does it)"
        fi
    fi
    rm -rf "$root$prefix/lib/rpi-daemon" "$root$prefix/share/doc/rpi-daemon"
    for unit in systemd/*.{service,socket,slice}; do rm -f "$root$prefix/lib/systemd/system/${unit##*/}"; done
    rm -f "$root$prefix/bin/rpi-daemon" "$root$prefix/lib/udev/rules.d/70-rpi-daemon.rules" \
        "$root$prefix"/lib/{sysusers,tmpfiles}.d/rpi-daemon.conf
    [ -n "$root" ] || systemctl daemon-reload
    say "Removed. $etc and /var/lib/rpi-daemon (configuration, history) are left."
}

case $what in
install) install_all ;;
uninstall) uninstall_all ;;
*) fail "install or uninstall?" ;;
esac
