#!/usr/bin/env bash
# run.sh: start the daemon on roots inside the checkout and run a first container through it.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/.run
socket=$run/stated.sock
mkdir -p "$run"
if [ -e "$run/stated.pid" ] && kill -0 "$(cat "$run/stated.pid")" 2>/dev/null; then
  echo "the daemon runs already, as process $(cat "$run/stated.pid")"
else
  rm -f "$run/stated.pid"
  setsid bin/stated daemon --data-root "$run/data" --exec-root "$run/exec" --pidfile "$run/stated.pid" \
    --bridge stated-run0 --bip 172.31.255.1/24 -H "unix://$socket" >>"$run/stated.log" 2>&1 </dev/null &
  pid=$!
  until bin/stated -H "unix://$socket" info >/dev/null 2>&1; do
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "the daemon did not start:" >&2
      tail -5 "$run/stated.log" >&2
      exit 1
    fi
  done
fi
bin/stated -H "unix://$socket" phases
bin/quickstart "$socket" bin/hello
