#!/usr/bin/env bash
# containerd.sh DIR: run a containerd whose root, state, log and socket (DIR/containerd.sock) are in DIR, until it is
# killed. It is Debian sid's, started by that suite's own loader. DIR has to be short: sockets are in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tree=$("$here/dockerd.sh")
dir=$(realpath "$1")
cat >"$dir/containerd.toml" <<TOML
version = 3
root = '$dir/root'
state = '$dir/state'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime',
  'io.containerd.podsandbox.controller.v1.podsandbox', 'io.containerd.grpc.v1.sandbox-controllers',
  'io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']
[grpc]
address = '$dir/containerd.sock'
TOML
exec "$tree/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \
  "$tree/usr/bin/containerd" --config "$dir/containerd.toml" >>"$dir/containerd.log" 2>&1
