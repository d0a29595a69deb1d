# Every step a developer or CI needs is a target here; `make` alone lists them. Each installs what it needs (scripts/deps.sh).

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory
export PATH := $(PATH):/usr/local/go/bin

GO      ?= go
export VERSION := $(or $(VERSION),$(shell git describe --tags --always --dirty 2>/dev/null),unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

# Test binaries run one after another on small machines: each may hold several guests and a broker.
CORES    := $(shell nproc 2>/dev/null || echo 2)
PARALLEL ?= $(shell echo $$(( $(CORES) > 3 ? $(CORES) / 2 : 1 )))
TESTS    ?= ./...
SEED     ?= on
FUZZTIME ?= 60s
BENCH    ?= .
COUNT    ?= 1
SEEDS    ?= 10000

# The packages whose goroutines share something.
RACE ?= ./engine ./engine/broker ./engine/dev ./wasmhost/...

GUEST_VENV ?= $(or $(KASPR_CACHE),$(HOME)/.cache/kaspr)/guest-bench/venv
HTTP_VENV  ?= $(or $(KASPR_CACHE),$(HOME)/.cache/kaspr)/http-bench/venv

# The packages with tests against a real broker.
INTEGRATION ?= $(shell grep -rl --include='*_test.go' '^//go:build integration' . | xargs -r -n 1 dirname | sort -u)

# Tools of the lint targets, built from source by the go command at these versions.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT       := mvdan.cc/gofumpt@v0.12.0

# What is built and tested here has the patches of wasmhost/wazero; the bare go command takes the released wazero.
# So do the linters: golangci-lint asks the go command things outside of modules, where it knows no -modfile.
WITH_PATCHES := build unit conformance integration crash-test schedule-test sim test-guest race fuzz bench bench-http bench-guest bench-peers bench-growth flame
$(WITH_PATCHES): export GOFLAGS := $(GOFLAGS) -modfile=$(CURDIR)/bin/wazero.mod
$(WITH_PATCHES): export KASPR_PATCHED := 1
$(WITH_PATCHES): wazero

.PHONY: wazero
wazero:
	@scripts/deps.sh build
	@scripts/wazero.sh

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: doctor
doctor: ## Say what this machine has and lacks, and change nothing
	@scripts/doctor.sh

.PHONY: deps
deps: ## Install the Debian packages that building and testing need
	@scripts/deps.sh build kafka

.PHONY: pyguest
pyguest: ## Build the Python guest (minutes the first time, then from the cache)
	@scripts/deps.sh build
	@pyguest/build.sh

.PHONY: build
build: pyguest ## Build bin/kaspr
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/kaspr .

.PHONY: quickstart
quickstart: build ## Build all and run the example on the embedded broker
	@scripts/quickstart.sh

.PHONY: run
run: build ## Run the engine: make run ARGS='dev examples/quickstart'
	bin/kaspr $(ARGS)

.PHONY: test
test: deps ## Every test: unit, conformance, embedded broker, race detector, then real Kafka
	@$(MAKE) unit
	@$(MAKE) race
	@$(MAKE) integration

.PHONY: unit
unit: pyguest ## Tests that need nothing but this machine (conformance included)
	$(GO) vet ./...
	$(GO) test -p $(PARALLEL) -shuffle $(SEED) -timeout 30m $(TESTS)

.PHONY: conformance
conformance: pyguest ## Only testdata/conformance: each case through the real guest
	$(GO) test -count 1 -v -run 'TestConformance' ./engine/...

.PHONY: integration
integration: pyguest ## Tests against a real Apache Kafka, started by them
	@scripts/deps.sh build kafka
	$(GO) vet -tags integration $(INTEGRATION)
	$(GO) test -tags integration -p 1 -count 1 -timeout 40m -skip '^(TestConformance|TestExamples|TestExpectedOfExamples|TestRegistryTLS)$$' $(INTEGRATION)

.PHONY: crash-test
crash-test: pyguest ## Kill engines and the broker under load: make crash-test KILLS=100 RESTARTS=5 RECORDS=1000000
	@scripts/deps.sh build kafka
	KASPR_CRASH_KILLS=$(or $(KILLS),20) KASPR_CRASH_RESTARTS=$(or $(RESTARTS),3) KASPR_CRASH_RECORDS=$(or $(RECORDS),200000) \
	$(if $(filter-out on,$(SEED)),KASPR_CRASH_SEED=$(SEED)) $(GO) test -tags integration -count 1 -v -timeout 3h -run '^TestCrash$$' ./engine/cli

.PHONY: schedule-test
schedule-test: pyguest ## Kill engines while messages wait, and measure the scheduler: make schedule-test KILLS=10 MESSAGES=1000000 OVER=60
	@scripts/deps.sh build kafka
	KASPR_SCHEDULE_KILLS=$(or $(KILLS),10) KASPR_SCHEDULE_MESSAGES=$(or $(MESSAGES),200000) KASPR_SCHEDULE_SECONDS=$(or $(OVER),60) \
	KASPR_SCHEDULE_RATES=$(or $(MESSAGES),200000) KASPR_SCHEDULE_IDLE=$(or $(MESSAGES),200000) $(if $(filter-out on,$(SEED)),KASPR_SCHEDULE_SEED=$(SEED)) \
	$(GO) test -tags integration -count 1 -v -timeout 1h -run '^TestSchedule(Crash|Rates|Idle)$$' ./engine/cli

.PHONY: sim
sim: ## Simulate histories of commits, crashes and faults: make sim SEEDS=100000, or SEED=N for one
	SIM_RANDOM=1 $(GO) test -p 1 -count 1 -timeout 4h -run '^TestSim$$' ./engine ./scheduler $(if $(filter-out on,$(SEED)),-seed $(SEED),-seeds $(SEEDS))

.PHONY: test-guest
test-guest: pyguest ## CPython's own tests inside the guest
	$(GO) test -count 1 -timeout 60m ./pyguest/tests/regrtest -full

.PHONY: race
race: pyguest ## Unit tests of the packages with goroutines under the race detector
	$(GO) test -race -p $(PARALLEL) -shuffle $(SEED) -timeout 30m $(RACE)

.PHONY: fuzz
fuzz: pyguest ## Every fuzz target for FUZZTIME each
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: pyguest ## Benchmarks: make bench BENCH=Call COUNT=10 (compare with benchstat)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -p 1 -timeout 60m $(TESTS)

.PHONY: bench-http
bench-http: build ## A web view beside FastAPI on uvicorn, in one run: make bench-http REPS=3
	@test -x $(HTTP_VENV)/bin/uvicorn || { python3 -m venv --clear $(HTTP_VENV) && $(HTTP_VENV)/bin/pip install -q --no-deps -r bench/httpbench/testdata/requirements.txt; }
	KASPR_BINARY=$(CURDIR)/bin/kaspr KASPR_HTTP_PYTHON=$(HTTP_VENV)/bin/python $(GO) test -tags 'httpbench integration' -count 1 -v -run '^TestBesideFastAPI$$' ./bench/httpbench

.PHONY: bench-guest
bench-guest: pyguest ## The guest beside native CPython of its version: make bench-guest REPS=5 PROGRAMS='python/|w1' RESULTS=file.json
	@ls $(GUEST_VENV)/lib/python3*/site-packages/pyperformance >/dev/null 2>&1 || { python3 -m venv --clear $(GUEST_VENV) && \
	  $(GUEST_VENV)/bin/pip install -q --no-deps -r bench/guestbench/testdata/requirements.txt; }
	KASPR_GUEST_BENCHMARKS=$(GUEST_VENV) $(GO) test -tags 'guestbench integration' -count 1 -v -timeout 1h -run '^TestBesideNative$$' ./bench/guestbench \
	  -reps $(or $(REPS),5) -programs '$(PROGRAMS)' $(if $(RESULTS),-results $(abspath $(RESULTS)))

.PHONY: bench-peers
bench-peers: build ## Kaspr beside Kafka Streams, Quix, Bytewax, Faust: make bench-peers REPS=3 SYSTEMS=kaspr,quix RESULTS=file.json
	@scripts/deps.sh build kafka peers
	KASPR_BINARY=$(CURDIR)/bin/kaspr $(GO) test -tags 'peers integration' -count 1 -v -timeout 4h -run '^($(or $(TEST),TestPeers|TestLatency))$$' ./bench/peers \
	  -reps $(or $(REPS),3) -systems '$(SYSTEMS)' -variants '$(VARIANTS)' $(if $(RECORDS),-records $(RECORDS)) $(if $(RESULTS),-results $(abspath $(RESULTS)))

.PHONY: bench-growth
bench-growth: build ## What the engine costs as one thing grows: make bench-growth GROWTH=partitions (bytes, processes, agents, keys) RESULTS=file.json
	@scripts/deps.sh build kafka peers
	KASPR_BINARY=$(CURDIR)/bin/kaspr $(GO) test -tags 'peers integration' -count 1 -v -timeout 4h -run '^TestGrowth$$$(if $(GROWTH),/^$(GROWTH)$$)' ./bench/peers \
	  -reps $(or $(REPS),1) $(if $(RECORDS),-records $(RECORDS)) $(if $(RESULTS),-results $(abspath $(RESULTS)))

.PHONY: flame
flame: pyguest ## Draw where the engine's time goes: docs/flame-w1.svg and flame-w2.svg (perf needs to see the process: root, or perf_event_paranoid of 1)
	@scripts/deps.sh build kafka peers flame
	@GUEST_NAMES=1 pyguest/build.sh --out bin/named
	@printf '{"Replace":{"%s":"%s","%s":"%s"}}' $(foreach f,kaspr-python.wasm BUILD_ID,$(CURDIR)/pyguest/build/$(f) $(CURDIR)/bin/named/$(f)) >bin/named/overlay.json
	$(GO) build -tags perfmap -overlay bin/named/overlay.json -o bin/named/kaspr .
	KASPR_BINARY=$(CURDIR)/bin/named/kaspr $(GO) test -tags 'peers integration' -count 1 -v -timeout 30m -run '^TestFlame$$' ./bench/peers \
	  -flames $(CURDIR)/docs -records $(or $(RECORDS),1500000)

.PHONY: lint
lint: pyguest ## Go linters and the C code's warnings
	@scripts/deps.sh build
	@scripts/tool.sh $(GOLANGCI_LINT) run --timeout 20m
	@scripts/lint-c.sh

.PHONY: fmt
fmt: ## Format the Go code
	@scripts/tool.sh $(GOFUMPT) -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: generate
generate: ## Write generated files anew; CI expects no difference
	$(GO) generate ./...

.PHONY: licenses
licenses: pyguest ## Write THIRD_PARTY_LICENSES anew
	@scripts/licenses.sh

.PHONY: console
console: ## Write the console's page (http/console/dist) anew from its source
	@scripts/deps.sh node
	cd http/console && npm ci --ignore-scripts --no-audit --no-fund && node build.js

.PHONY: console-test
console-test: build ## Click through the console in a headless Chromium
	@scripts/deps.sh node browser
	cd http/console && npm ci --ignore-scripts --no-audit --no-fund
	$(GO) test -count 1 -run TestConsoleIsBuilt ./http
	KASPR_BINARY=$(CURDIR)/bin/kaspr node --test http/console/test/

.PHONY: image
image: pyguest ## Build the container image kaspr:VERSION
	@scripts/image.sh build $(VERSION)

.PHONY: image-test
image-test: image ## Start the image once, read-only and without rights, and compare its output
	@scripts/image.sh test $(VERSION)

.PHONY: tidy
tidy: ## Tidy go.mod
	$(GO) mod tidy

.PHONY: clean
clean: ## Remove build products (not the cache folder)
	rm -rf bin pyguest/build
