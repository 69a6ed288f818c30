#!/usr/bin/env bash
# run.sh [FLAG...]: measure stated and a real dockerd, and its key tree and a real etcd, side by side in namespaces of
# their own, and print the tables of docs/performance.md. Flags go to the benchmark; -h lists them.
set -euo pipefail
cd "$(dirname "$0")/../.."
contrib/deps.sh test
tree=$(contrib/env/dockerd.sh)
image=$(contrib/env/busybox.sh)
etcd=$(contrib/env/etcd.sh)/etcd
(cd contrib/bench/v2store && CGO_ENABLED=0 go build -o ../../../bin/bench-v2store .)
CGO_ENABLED=0 go build -o bin/bench ./contrib/bench
exec unshare -m -n --propagation private sh -c 'ip link set lo up; exec "$@"' sh \
  bin/bench -stated "$PWD/bin/stated" -runc "$PWD/bin/runc" -dockerd-tree "$tree" -etcd "$etcd" -trees "$PWD/bin/bench-v2store" -image "$image" "$@"
