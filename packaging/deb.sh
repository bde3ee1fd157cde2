#!/usr/bin/env bash
# Builds dist/rpi-daemon_VERSION_ARCHITECTURE.deb for Debian bookworm on a machine of that architecture: deb.sh PYTHON
# PYTHON: a Python 3.11 with pip, setuptools and Cython. Wheels come by the hashes of requirements.txt. No root is needed.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
. packaging/tree.sh
build=$1
"$build" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    || { echo "deb.sh: $build is not Python 3.11, which bookworm has: the package holds compiled wheels of that version" >&2; exit 1; }
architecture=$(dpkg --print-architecture)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
maintainer="${DEBFULLNAME:-$(git log -1 --format=%an)} <${DEBEMAIL:-$(git log -1 --format=%ae)}>"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
work=$PWD/build/deb
root=$work/root
doc=$root/usr/share/doc/rpi-daemon
rm -rf "$work"
mkdir -p "$work/debian" "$root/DEBIAN" "$doc" dist

# LDSHARED: some builds of Python would write the folder of their own libraries into ours
rm -rf build/lib* build/bdist*
LDSHARED="gcc -shared" "$build" -P -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
wheel=$(echo "$work"/*.whl)
{ cat packaging/requirements.txt; echo "$wheel --hash=sha256:$(sha256sum < "$wheel" | cut -d' ' -f1)"; } > "$work/requirements.txt"
tree "$root" /usr /usr/bin/python3.11 3.11 "$build -P -m pip" --require-hashes --only-binary :all: --no-deps -r "$work/requirements.txt"
ln -sf ../../../bin/python3.11 "$root/usr/lib/rpi-daemon/bin/python3"
strip --strip-unneeded "$root"/usr/lib/rpi-daemon/lib/python3.11/site-packages/rpi_daemon/_fastpath/*.so
units "$root" /usr /lib/systemd/system /lib/udev/rules.d
install -d -m 755 "$root/usr/share/lintian/overrides"
cp packaging/debian/lintian-overrides "$root/usr/share/lintian/overrides/rpi-daemon"
documents "$doc" "$build"
install -d -m 755 "$root/etc/rpi-daemon/credentials"
cp packaging/debian/copyright "$doc/"
printf 'rpi-daemon (%s) bookworm; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -R -u -d "@$SOURCE_DATE_EPOCH")" | gzip -9n > "$doc/changelog.gz"
install -d "$root/usr/share/man/man1"
gzip -9n < packaging/rpi-daemon.1 > "$root/usr/share/man/man1/rpi-daemon.1.gz"
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f ! -path '*/bin/*' -exec chmod 644 {} +

# what the compiled parts need of the system, from the packages that this machine has them of
printf 'Source: rpi-daemon\n\nPackage: rpi-daemon\nArchitecture: any\n' > "$work/debian/control"
private=$(find "$root" -name '*.so*' -printf '-l%h\n' | sort -u)
needs=$(cd "$work" && find root -name '*.so*' -type f -print0 | xargs -0 dpkg-shlibdeps --ignore-missing-info $private -O 2> "$work/shlibdeps.log") \
    || { cat "$work/shlibdeps.log" >&2; exit 1; }

for script in postinst prerm postrm; do install -m 755 "packaging/debian/$script" "$root/DEBIAN/$script"; done
sed -e "s|@VERSION@|$version|; s|@ARCHITECTURE@|$architecture|; s|@MAINTAINER@|$maintainer|" \
    -e "s|@DEPENDS@|${needs#shlibs:Depends=}|; s|@SIZE@|$(du -sk --apparent-size "$root/usr" | cut -f1)|" \
    packaging/debian/control > "$root/DEBIAN/control"
chmod 700 "$root/etc/rpi-daemon/credentials"
(cd "$root" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum > DEBIAN/md5sums)
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -print0 | xargs -0 -r touch --no-dereference --date="@$SOURCE_DATE_EPOCH"
dpkg-deb --root-owner-group ${DEB_COMPRESSION:--Zxz -z6} --build "$root" "dist/rpi-daemon_${version}_$architecture.deb"
