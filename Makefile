# SPDX-License-Identifier: Apache-2.0

# `make` prints what there is. `make demo` and `make test` install what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

BIN := bin
GO ?= go

# Tests, lint and programs compile with the same settings, so that each dependency is compiled once.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath $(shell $(GO) env GOFLAGS)

TOOL := $(GO) tool -modfile=go.tools.mod
PROGRAMS := manager featurecache preloader preloader-gpu kubectl-outrigger

# Debian packages: servers that tests run, and what a node needs to run pods.
PACKAGES_TEST := gcc libc6-dev memcached nutcracker prometheus python3 python3-pymemcache python3-venv
PACKAGES_BENCH := awscli python3-awscrt python3-venv
PACKAGES_GENERATE := protobuf-compiler
PACKAGES_NODE := containerd containernetworking-plugins iptables conntrack iproute2 socat libseccomp-dev pkg-config

.PHONY: help
help: ## Print this table.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps-node build ## Run the whole job on a real cluster on this machine, as a story. KEEP=1 leaves it running. Needs root.
	$(GO) run ./test/demo $(if $(KEEP),-keep)

.PHONY: test
test: deps ## Run all tests that need no root and no pods.
	$(GO) test -timeout 90m ./...

.PHONY: race
race: ## Run the preloader's tests under the race detector, some campaigns shorter. Takes some seven minutes.
	CGO_ENABLED=1 $(GO) test -race -short -timeout 30m ./preloader/...

FUZZ ?= preloader memcached routing samples
FUZZTIME ?= 60s

.PHONY: fuzz
fuzz: ## Fuzz every parser, each for FUZZTIME (60s), below the folders FUZZ="preloader ...". Stops at the first finding.
	@grep -rho --include='*_test.go' -H '^func Fuzz[A-Za-z0-9]*' $(FUZZ) | sed 's,/[^/]*_test.go:func , ,' | while read -r dir name; do \
	  echo "== $$dir $$name"; $(GO) test "./$$dir" -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x || exit 1; done

.PHONY: e2e
e2e: deps-node build ## Run the tests that need real pods. Needs root.
	$(GO) test -tags e2e -count 1 -timeout 60m ./test/e2e
	$(GO) test -tags e2e -count 1 -timeout 60m -run 'Node|Pod' ./test/testbed

.PHONY: bench
bench: ## Run the benchmarks of decisions and of the ring.
	$(GO) test -run '^$$' -bench . -benchmem ./controllers/... ./memcached/...

.PHONY: bench-preloader
bench-preloader: ## Measure the preloader against its peers, which it builds. ARGS="-cells ... -clients ..." runs a part, ARGS=-quick a try. Needs root.
	@$(call install,$(PACKAGES_BENCH))
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/bench-preloader ./test/bench/preloader
	$(BIN)/bench-preloader $(ARGS)

.PHONY: bench-policies
bench-policies: ## Measure the manager among 1,000 InferenceServices and 5,000 pods; writes test/bench/policies.md.
	@mkdir -p test/bench
	BENCH_POLICIES=$(CURDIR)/test/bench/policies.md $(GO) test -tags bench -count 1 -timeout 20m -run TestScale -v ./controllers

.PHONY: bench-rollout
bench-rollout: ## Measure how soon a wish reaches the route, beside Argo Rollouts and Flagger, which it builds. ARGS="-rollouts 20 -rounds 1 -out=" for a try.
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/bench-rollout ./test/bench/rollout
	$(BIN)/bench-rollout $(ARGS)

.PHONY: lint
lint: ## Lint everything.
	$(TOOL) golangci-lint run

.PHONY: tools
tools: ## Compile the linters and generators, which `make verify` does as well.
	$(TOOL) golangci-lint version
	$(TOOL) controller-gen --version

.PHONY: verify
verify: generate lint ## Generate, lint and tidy; fail if anything differs from what is committed.
	$(GO) mod tidy
	@for module in test/testbed/modules/*/; do (cd $$module && $(GO) mod verify >/dev/null) || exit 1; done
	@test -z "$$(git status --porcelain)" || { git status --short; git diff; echo "generated or tidied files differ: commit them"; exit 1; }

.PHONY: generate
generate: ## Generate deep copies, apply configurations, definitions, RBAC rules and protobuf code.
	$(TOOL) controller-gen object:headerFile=/dev/null crd applyconfiguration:headerFile=/dev/null paths=./apis/... output:crd:dir=config/crd/bases
	$(TOOL) controller-gen rbac:roleName=outrigger-manager paths=./controllers/... output:rbac:dir=config/rbac
	@$(call install,$(PACKAGES_GENERATE))
	$(GO) build -modfile=go.tools.mod -o $(BIN)/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH=$(CURDIR)/$(BIN):$$PATH $(GO) generate ./samples/predictor/inference

.PHONY: build
build: ## Build the programs into bin/. PROGRAMS=preloader builds that one alone.
	$(GO) build -ldflags "-s -w" -o $(BIN)/ $(PROGRAMS:%=./cmd/%)

.PHONY: images
images: build ## Build image archives into bin/, to import with `ctr images import` or `docker load`.
	$(GO) run ./test/images $(BIN)

.PHONY: deps
deps: ## Install the Debian packages that tests need, if they are missing.
	@$(call install,$(PACKAGES_TEST))

.PHONY: deps-node
deps-node: ## Install the Debian packages that running pods needs, if they are missing.
	@$(call install,$(PACKAGES_TEST) $(PACKAGES_NODE))

# install has Debian install those of the packages that are missing.
define install
missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q ' installed$$' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then \
  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
  echo "Installing$$missing"; \
  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
fi
endef
