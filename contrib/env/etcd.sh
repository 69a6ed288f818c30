#!/usr/bin/env bash
# etcd.sh: print the directory that holds etcd and etcdctl 3.4.23, as Debian 12 has them, unpacked into the test cache.
# The key tree's HTTP API is compared with this server. Both need no library but the C library: they run where they lie.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
unpack() {
  "$here/unpack.sh" bookworm "$1" etcd-server etcd-client
}
once etcd unpack
echo "$cache/etcd/usr/bin"
