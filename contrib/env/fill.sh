#!/usr/bin/env bash
# fill.sh: unpack everything that tests compare with into the test cache. It runs before the tests: they start these
# programs in namespaces without a network, and wait for them no longer than for an installed program.
set -euo pipefail
cd "$(dirname "$0")"
for entry in docker-cli dockerd busybox criu debian kernel etcd; do
  "./$entry.sh" >/dev/null
done
