#!/usr/bin/env bash
# stop.sh: end the daemon that run.sh started, and its containers, and remove everything they left.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/.run
[ -d "$run" ] || exit 0
bin/stated daemon-cleanup --data-root "$run/data" --exec-root "$run/exec" --pidfile "$run/stated.pid" -H "unix://$run/stated.sock"
rm -rf "$run"
