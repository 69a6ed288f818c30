#!/usr/bin/env bash
# runc.sh DIR: see that a runc of at least 1.2 is on PATH, or build the pinned one into DIR.
set -euo pipefail
dir=$1
new_enough() { [ "$(printf '%s\n1.2\n' "$("$1" --version 2>/dev/null | awk 'NR==1{print $3}')" | sort -V | head -1)" = 1.2 ]; }
cd "$(dirname "$0")/runc"
pinned=$(go list -m -f '{{.Version}}' github.com/opencontainers/runc)
if [ -x "$dir/runc" ] && [ "v$("$dir/runc" --version | awk 'NR==1{print $3}')" = "$pinned" ]; then exit 0; fi
if command -v runc >/dev/null && new_enough runc; then exit 0; fi
echo "building runc $pinned"
# Static: runc is started three times for every container, and a dynamic one is relocated each time.
go build -trimpath -tags "seccomp netgo osusergo" -ldflags "-s -w -linkmode external -extldflags -static" -o "$dir/runc" github.com/opencontainers/runc
