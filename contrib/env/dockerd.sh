#!/usr/bin/env bash
# dockerd.sh: print the root directory of a tree that holds Debian sid's dockerd with containerd and runc, unpacked
# into the test cache. Start it with chroot; see with-dockerd.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
unpack() {
  "$here/unpack.sh" sid "$1" docker.io docker-cli iptables iproute2 procps tini xfsprogs e2fsprogs ca-certificates
  mkdir -p "$1"/{proc,sys,dev,run,tmp,etc,root,var/lib,var/run}
  ln -sf /usr/sbin/iptables-nft "$1/usr/sbin/iptables"
  ln -sf /usr/sbin/ip6tables-nft "$1/usr/sbin/ip6tables"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
  printf 'root:x:0:\ndocker:x:999:\n' >"$1/etc/group"
  ldconfig -r "$1"
}
once dockerd unpack
echo "$cache/dockerd"
