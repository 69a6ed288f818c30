#!/usr/bin/env bash
# run.sh [FLAG...]: measure stated and a real dockerd side by side, in namespaces of their own, and print the table of
# docs/performance.md. Flags go to the benchmark; -h lists them.
set -euo pipefail
cd "$(dirname "$0")/../.."
contrib/deps.sh test
tree=$(contrib/env/dockerd.sh)
image=$(contrib/env/busybox.sh)
CGO_ENABLED=0 go build -o bin/bench ./contrib/bench
exec unshare -m -n --propagation private sh -c 'ip link set lo up; exec "$@"' sh \
  bin/bench -stated "$PWD/bin/stated" -runc "$PWD/bin/runc" -dockerd-tree "$tree" -image "$image" "$@"
