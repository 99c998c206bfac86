# What a clone needs is Go alone; `make help` lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL    := go tool -modfile=tools.mod
# The race detector needs cgo and a C compiler; without one the tests run without it, and say so.
RACE    := $(shell if [ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null 2>&1; then echo -race; fi)
FUZZTIME ?= 30s
SOAK    ?= 5m
BENCH   ?= .
COUNT   ?= 6
CHAOS   ?= 8m
# Packages whose tests run in bubbles of synctest. With the race detector they get one processor: timers of a bubble that
# fire on two at a time corrupt the detector's state, and it ends the test (golang/go#78156).
BUBBLED := go list -test -f '{{range .Deps}}{{if eq . "testing/synctest"}}{{$$.ForTest}}{{end}}{{end}}' ./... | sort -u | grep -v /e2e
# Tests of many nodes in virtual time, which say how long things took and how many bytes.
VIRTUAL := ALargeCluster|ProbesOfABackend|KilledBackend

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/pyserve and bin/pyservectl
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: up
up: build ## the main job: a control, three nodes, demo backends, all on this machine; Ctrl-C stops it
	@exec bin/pyserve up

.PHONY: test
test: ## everything that a clone must pass: unit tests, with the race detector where there is a C compiler, and e2e
	@if [ -z "$(RACE)" ]; then echo "no C compiler: the tests run without the race detector"; fi
	go test $(RACE) -timeout 10m $$(go list ./... | grep -v /e2e | grep -vxF "$$($(BUBBLED))")
	go test $(RACE) $(if $(RACE),-cpu 1) -timeout 10m $$($(BUBBLED))
	go test -timeout 10m -run 'LargeCluster|LossKillsNobody' ./cluster # 128 members in fake time, too many for the race detector
	go test -timeout 10m ./e2e/...

.PHONY: e2e
e2e: ## the built binaries, driven from outside
	go test -count=1 -timeout 10m ./e2e/...

.PHONY: soak
soak: ## SOAK (5m) of everything at once: all traffic, clients that break off, dying backends, an apply a second
	SOAK=$(SOAK) go test -count=1 -v -timeout 0 -run '^TestSoak$$' ./e2e

.PHONY: h2spec
h2spec: ## HTTP/2 by the book, over TLS and with prior knowledge; `make test` does it too
	go test -count=1 -v -run TestSpecification ./node/forward

.PHONY: lint
lint: ## gofmt, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint

.PHONY: generate
generate: ## make the Go code of the .proto files
	$(TOOL) buf generate

.PHONY: verify
verify: ## generated code fresh, go.mod tidy, import floors kept
	@sh .ci/verify
	go test -count=1 -run 'TestFloors|TestEveryPackageSaysWhatItOwns' .

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME (30s) each
	@go list -f '{{$$p := .ImportPath}}{{range .TestGoFiles}}{{$$p}} {{$$.Dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$$p}} {{$$.Dir}}/{{.}}{{"\n"}}{{end}}' ./... | \
	while read -r package file; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file" | while read -r target; do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
		done || exit 1; \
	done

.PHONY: bench
bench: ## the benchmarks, COUNT (6) times each, summed up by benchstat
	@out=$$(mktemp); trap 'rm -f "$$out"' EXIT; \
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) $$(go list ./... | grep -v /e2e) | tee "$$out"; \
	$(TOOL) benchstat "$$out"

.PHONY: bench-peers
bench-peers: ## nginx, HAProxy, Caddy, Go's ReverseProxy beside a node, tables to bin/peers.md; PEERS="-rounds 5" are flags
	@mkdir -p bin
	go run ./e2e/peers -markdown bin/peers.md $(PEERS)

.PHONY: chaos
chaos: ## kill and cut off leaders of the store for CHAOS (8m: 200 of them) and check that no write is lost or done twice
	PYSERVE_STORE_CHAOS=$(CHAOS) go test -count=1 -timeout 2h -v -run TestNoWriteIsLostOrDoneTwice ./control/store

.PHONY: bench-control
bench-control: ## control under a thousand node streams: applies, restarts, swaps; tables to bin/scale.md; SCALE="-short" are flags
	@mkdir -p bin
	go run ./e2e/scale -only 'apply|reconnect|swap|failover' -markdown bin/scale.md $(SCALE)

.PHONY: bench-cluster
bench-cluster: ## members, health checks and drains of many nodes, in virtual time and real; tables to bin/cluster.md; CLUSTER="-rounds 3" are flags
	@mkdir -p bin
	@go test -count=1 -v -run '$(VIRTUAL)' ./cluster ./node/health >bin/virtual.out || { cat bin/virtual.out; exit 1; }
	@BURST=10x100/0,10x1000/0,10x5000/0,10x5000/5 go test -count=1 -v -timeout 30m -run ABurst ./cmd/pyserve >>bin/virtual.out || { cat bin/virtual.out; exit 1; }
	@CLUSTER_SIZE=128 go test -count=1 -v -timeout 30m -run LossKills ./cluster >>bin/virtual.out || { cat bin/virtual.out; exit 1; }
	@sed -n 's/^ *[a-z_]*_test\.go:[0-9]*: //p' bin/virtual.out
	go run ./e2e/scale -only 'outage|leave' -markdown bin/cluster.md $(CLUSTER)
