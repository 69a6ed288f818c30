#!/usr/bin/env bash
# kernel.sh: print the directory that holds Debian's kernel for virtual machines with its modules, unpacked into the
# test cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
unpack() {
  package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/{print $2; exit}'; }
  local image
  image=$(package); [ -n "$image" ] || { apt-get -o Acquire::Retries=3 update -qq; image=$(package); }
  (cd "$1" && apt-get -o Acquire::Retries=3 -o APT::Sandbox::User=root download -qq "$image" && dpkg -x "$image"_*.deb . && rm -f ./*.deb)
  depmod -b "$1" "$(ls "$1/lib/modules")"
}
once kernel unpack
echo "$cache/kernel"
