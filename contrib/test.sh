#!/usr/bin/env bash
# test.sh: every test, with the race detector, and the end-to-end suite against the built binaries.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/bin:$PATH"
go test -race -timeout 20m ./...
