# make run   installs what is missing, builds, starts the daemon in this checkout and runs a first container
# make stop  ends it and removes everything it left
# make test  installs what the tests need and runs them all
# make soak  runs the crash and stress runs at full length
# make install  puts the binaries and the systemd units below DESTDIR
GO ?= go
VERSION ?= 0.1.0-dev
LDFLAGS = -s -w -X main.version=$(VERSION)
BIN = $(CURDIR)/bin
PREFIX ?= /usr

.PHONY: run stop test soak install build bench lint clean deps e2e

run: build
	@contrib/run.sh

stop:
	@contrib/stop.sh

build:
	@contrib/deps.sh run
	@mkdir -p $(BIN)
	@contrib/runc.sh $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stated ./cmd/stated
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stated-shim ./cmd/stated-shim
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/hello ./contrib/quickstart/hello
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/quickstart ./contrib/quickstart

test: build lint
	@contrib/deps.sh test
	@contrib/env/fill.sh
	@contrib/test.sh

soak: build
	@contrib/deps.sh test
	@contrib/env/fill.sh
	STATED_SOAK=long PATH="$(BIN):$$PATH" $(GO) test -count=1 -v -timeout 6h ./cluster/raft ./cluster/store ./volumes ./contrib/soak ./contrib/kvtest ./contrib/systemdtest ./contrib/vmtest

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin $(BIN)/stated $(BIN)/stated-shim
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system contrib/systemd/stated.service contrib/systemd/stated.socket
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/stated docs/systemd.md

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...

bench: build
	@contrib/bench/run.sh

clean: stop
	rm -rf $(BIN)
