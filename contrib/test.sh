#!/usr/bin/env bash
# test.sh: every package's tests with the race detector, then the suites that drive the built binaries, one after the
# other, because some of them measure.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/bin:$PATH"
go test -race -timeout 20m $(go list ./... | grep -v /contrib/)
go test -p 1 -timeout 40m ./contrib/...
(cd contrib/etcdclient && go test -timeout 10m ./...)
(cd contrib/bench/v2store && go vet ./...)
