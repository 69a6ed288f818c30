#!/usr/bin/env bash
# docker-cli.sh: print the path of a docker command of version 28 or newer: the one on PATH, or Debian sid's,
# unpacked into the test cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
if command -v docker >/dev/null; then
  major=$(docker --version | sed -n 's/Docker version \([0-9]*\).*/\1/p')
  if [ "${major:-0}" -ge 28 ]; then command -v docker; exit 0; fi
fi
unpack() { "$here/unpack.sh" sid "$1" docker-cli; }
once docker-cli unpack
# The program is linked against that suite's libraries, so it is started by their loader.
cat >"$cache/docker-cli.run.$$" <<RUN
#!/bin/sh
exec "$cache/docker-cli/lib64/ld-linux-x86-64.so.2" --library-path "$cache/docker-cli/usr/lib/x86_64-linux-gnu" "$cache/docker-cli/usr/bin/docker" "\$@"
RUN
chmod +x "$cache/docker-cli.run.$$"
mv "$cache/docker-cli.run.$$" "$cache/docker-cli.run" # whole at any time
echo "$cache/docker-cli.run"
