# Fills a folder with rpi-daemon and everything that it imports, as a virtual environment of its own. Sourced by deb.sh and install.sh.
# A service that must not fail takes no library from the system but Python: an upgrade of another package changes nothing here.

# tree ROOT PREFIX PYTHON VERSION PIP PIP_ARGUMENTS...: PREFIX/lib/rpi-daemon and PREFIX/bin/rpi-daemon below ROOT, to be run by
# PYTHON, which is VERSION; PIP is a command that runs pip under a Python of that version.
tree() {
    local root=$1 prefix=$2 python=$3 version=$4 pip=$5 home site
    shift 5
    home=$root$prefix/lib/rpi-daemon
    site=$home/lib/python$version/site-packages
    rm -rf "$home"
    mkdir -p "$site" "$home/bin" "$root$prefix/bin"
    $pip install --quiet --no-compile --no-warn-script-location --target "$site" "$@"
    rm -rf "$site/bin"
    # what only developers of those libraries need
    find "$site" -type d \( -name tests -o -path '*/onnx/backend/test' -o -path '*/numpy/_core/include' \) -prune -exec rm -rf {} +
    find "$site" -type f \( -name '*.pyi' -o -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cc' -o -name '*.a' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' \) -delete
    find "$site" \( -path '*.dist-info/direct_url.json' -o -name .DS_Store -o -name '*_tests.cpython-*.so' \) -delete
    find "$site" -name '*.py' -exec sed -i '1{/^#!/d}' {} + # no module of a library is a program
    ln -sf "$python" "$home/bin/python3"
    printf 'home = %s\ninclude-system-site-packages = false\nversion = %s\n' "$(dirname "$python")" "$version" > "$home/pyvenv.cfg"
    printf '#!%s -I\nfrom rpi_daemon.cli import main\n\nmain()\n' "$prefix/lib/rpi-daemon/bin/python3" > "$home/bin/rpi-daemon"
    chmod 755 "$home/bin/rpi-daemon"
    ln -sf ../lib/rpi-daemon/bin/rpi-daemon "$root$prefix/bin/rpi-daemon"
}

# units ROOT PREFIX SYSTEMD UDEV: what systemd, sysusers, tmpfiles and udev read, for the programs of PREFIX
units() {
    local root=$1 prefix=$2 systemd=$3 udev=$4
    mkdir -p "$root$systemd" "$root$udev" "$root$prefix/lib/sysusers.d" "$root$prefix/lib/tmpfiles.d"
    for unit in systemd/*.{service,socket,slice}; do
        sed "s|/usr/bin/rpi-daemon|$prefix/bin/rpi-daemon|; s|/usr/lib/rpi-daemon|$prefix/lib/rpi-daemon|; s|/usr/share/doc|$prefix/share/doc|" \
            "$unit" > "$root$systemd/${unit##*/}"
    done
    cp systemd/70-rpi-daemon.rules "$root$udev/"
    cp systemd/rpi-daemon.sysusers "$root$prefix/lib/sysusers.d/rpi-daemon.conf"
    cp systemd/rpi-daemon.tmpfiles "$root$prefix/lib/tmpfiles.d/rpi-daemon.conf"
}

# documents FOLDER PYTHON: the pages, with links as they are there, and examples of configurations and drop-ins
documents() {
    rm -rf "$1"
    mkdir -p "$1"
    "$2" packaging/documents.py "$1"
}
