#!/usr/bin/env bash
# criu.sh: print the path of a criu that works on this kernel: the one on PATH, or Debian 13's, unpacked into the test
# cache. Debian 12's (3.17) fails on kernels from 6.13 on ("vdso: Unexpected rt vDSO area bounds").
#
# What is printed is a script that starts it without hardware breakpoints (criu's fault 130): some virtual machines take
# them and never report one, and criu would wait for it without end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
# The program is linked against that suite's libraries: it gets their loader and their path. It is found beside them
# again under the name the cache entry has in the end.
unpack() {
  command -v patchelf >/dev/null || "$here/../deps.sh" test
  "$here/unpack.sh" "${CRIU_SUITE:-trixie}" "$1/tree" criu
  local lib=$cache/criu/tree/usr/lib/x86_64-linux-gnu
  mkdir "$1/bin"
  install -m 0755 "$1/tree/usr/sbin/criu" "$1/bin/criu"
  patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$lib" "$1/bin/criu"
}
criu=$(command -v criu || true)
if [ -z "$criu" ] || [ "$criu" = "$cache/criu.run/criu" ] || ! "$criu" check >/dev/null 2>&1; then
  once criu unpack
  criu=$cache/criu/bin/criu
  "$criu" check >&2
fi
mkdir -p "$cache/criu.run"
printf '#!/bin/sh\nCRIU_FAULT=130 exec "%s" "$@"\n' "$criu" >"$cache/criu.run/criu.$$"
chmod +x "$cache/criu.run/criu.$$"
mv "$cache/criu.run/criu.$$" "$cache/criu.run/criu" # whole at any time
echo "$cache/criu.run/criu"
