#!/usr/bin/env bash
# stop.sh: end the daemon that run.sh started, and its containers, and remove everything they left.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/.run
[ -d "$run" ] || exit 0
pid=$(cat "$run/stated.pid" 2>/dev/null || true)
running() { [ -n "$pid" ] && case $(readlink "/proc/$pid/exe" 2>/dev/null) in "$PWD/bin/stated"*) ;; *) false ;; esac; }
if ! running && [ -d "$run/data" ] && [ -n "$(ls "$run/exec/containers" 2>/dev/null)" ]; then
  # The daemon was killed and its containers live on: only a daemon can end them properly.
  contrib/run.sh >/dev/null
  pid=$(cat "$run/stated.pid")
fi
if running; then
  bin/quickstart -stop "$run/stated.sock"
  kill "$pid"
  while running; do sleep 0.05; done
fi
if [ -d "$run/data" ]; then
  bin/stated cleanup --data-root "$run/data" --exec-root "$run/exec"
fi
rm -rf "$run"
