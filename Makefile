# make run   installs what is missing, builds, starts the daemon in this checkout and runs a first container
# make stop  ends it and removes everything it left
# make test  installs what the tests need and runs them all
GO ?= go
VERSION ?= 0.1.0-dev
LDFLAGS = -s -w -X main.version=$(VERSION)
BIN = $(CURDIR)/bin

.PHONY: run stop test build bench lint clean deps e2e

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
	@contrib/test.sh

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...

bench: build
	@contrib/bench/run.sh

clean: stop
	rm -rf $(BIN)
