#!/usr/bin/env bash
# The agent's shared object goes into other people's servers: this holds what it is made of against committed lists.
#
#   Tests/check-agent.sh [OBJECT]      default: .build/release/liblooplag-agent.so
#
#   agent-imports.txt   every symbol it may import; a new one is a decision, not an accident
#   agent-exports.txt   every symbol it exports
#   agent-traps.txt     how many trap instructions it may hold; the number may only fall
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

object=${1:-.build/release/liblooplag-agent.so}
largest=$((128 * 1024))
failures=0

fail() {
    echo "agent object: $*" >&2
    failures=$((failures + 1))
}

# Committed lists allow comments.
list() { grep -v '^ *\(#\|$\)' "$1" | sort -u || true; }

[ -f "$object" ] || {
    fail "$object is missing; run swift build -c release --product looplag-agent"
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A debug build carries the Swift compiler's own debug section, which strip does not know.
strip --strip-all --remove-section=.swift_ast -o "$work/stripped.so" "$object"
bytes=$(stat -c %s "$work/stripped.so")
[ "$bytes" -le "$largest" ] || fail "stripped it has $bytes bytes, more than $largest"

needed=$(readelf -d "$object" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
[ "$needed" = "libc.so.6 " ] || fail "it needs more than libc.so.6: $needed"

# Weak symbols too: what the loader finds, the agent calls.
nm -D --undefined-only "$object" | awk '{ sub(/@.*/, "", $NF); print $NF }' | sort -u >"$work/imports"
list Tests/agent-imports.txt >"$work/allowed"
unlisted=$(comm -23 "$work/imports" "$work/allowed" | tr '\n' ' ')
[ -z "$unlisted" ] || fail "imports that Tests/agent-imports.txt does not list: $unlisted"

nm -D --defined-only "$object" | awk '{ sub(/@.*/, "", $NF); print $NF }' | sort -u >"$work/exports"
list Tests/agent-exports.txt >"$work/wanted"
diff -u --label Tests/agent-exports.txt --label "exports" "$work/wanted" "$work/exports" >&2 \
    || fail "its exports differ from Tests/agent-exports.txt"

traps=$(objdump -d --no-show-raw-insn "$object" | grep -cw ud2 || true)
allowed_traps=$(list Tests/agent-traps.txt)
[ "$traps" -le "$allowed_traps" ] || fail "$traps trap instructions, more than $allowed_traps: each can take a host down"
[ "$traps" -ge "$allowed_traps" ] || echo "agent object: only $traps traps now; lower Tests/agent-traps.txt" >&2

# Everything must resolve at once, in a process that has nothing but libc and an interpreter.
python3 -c 'import ctypes, os, sys; ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW)' "$(realpath "$work/stripped.so")" \
    || fail "dlopen with RTLD_NOW failed"

glibc=$(objdump -T "$object" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
echo "agent object: $bytes bytes stripped, $(wc -l <"$work/imports") imports, $(wc -l <"$work/exports") exports," \
    "$traps traps, needs $glibc"
exit "$((failures > 0))"
