# SPDX-License-Identifier: Apache-2.0

# CI calls only these targets. clang's version and flags stand in bpf/gen.go, nowhere else.

# sudo's PATH often lacks the place where go.dev's archive puts Go.
GO ?= $(or $(shell command -v go),$(firstword $(wildcard /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go)),go)
PREFIX ?= /usr/local
DESTDIR ?=
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)

# Named by version: a new pin is a new file, so an old binary is never used by mistake.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := bin/golangci-lint-$(GOLANGCI_VERSION)

# Says at the end which tests were skipped, and why.
GOTESTSUM_VERSION := v1.13.0
GOTESTSUM := bin/gotestsum-$(GOTESTSUM_VERSION)

# Debian and Ubuntu packages: what tests run, and what generate and lint add to that.
TEST_PACKAGES := iproute2 iptables nftables tcpdump tshark ethtool procps lxc lxc-templates busybox-static ansible-core yamllint rpm systemd
KERNEL_TEST_PACKAGES := qemu-system-x86 cpio xz-utils ebtables wireguard-tools debian-archive-keyring $(TEST_PACKAGES)
DEV_PACKAGES := clang-19 llvm-19 clang-format-19 shellcheck
TEST_COMMANDS := ip bridge iptables-legacy iptables-nft nft tcpdump tshark ethtool sysctl lxc-start busybox ansible-playbook yamllint rpm systemd-analyze
KERNEL_TEST_COMMANDS := qemu-system-x86_64 cpio xz ebtables-legacy wg apt-get dpkg $(TEST_COMMANDS)
DEV_COMMANDS := clang-19 llvm-strip-19 clang-format-19 shellcheck

# git refuses a checkout of another user's; `go build` would stop at that. The version is then "devel".
ifeq ($(shell git rev-parse HEAD 2>/dev/null),)
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)
endif

# Makes `go` itself findable for what Go starts: go generate, the end-to-end tests.
ifneq ($(findstring /,$(GO)),)
export PATH := $(dir $(GO)):$(PATH)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo build install bench-scale test test-kill test-upgrade test-race test-diff test-kernels test-kernels-short bench generate check-generate lint deps clean need-go need-root need-test need-test-kernels need-dev debs debs-full package test-install

# $(call have,commands,what for): stop with the way out when one is missing.
define have
@for c in $(1); do command -v $$c >/dev/null || { echo "$$c is missing, $(2) needs it: run 'sudo make deps' (Debian 12+, Ubuntu 24.04+)" >&2; exit 1; }; done
endef

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: need-root build ## Build a lab of two hosts, send traffic through it, show what BPF carried (root)
	./vxbpf lab demo

build: need-go ## Build ./vxbpf; needs Go only
	$(GO) build -ldflags '-X main.version=$(VERSION)' -o vxbpf ./cmd/vxbpf

install: ## Install what `make build` built to $(DESTDIR)$(PREFIX)/sbin
	@test -x vxbpf || { echo "./vxbpf is missing: run 'make build' first" >&2; exit 1; }
	install -D -m 0755 vxbpf $(DESTDIR)$(PREFIX)/sbin/vxbpf

# One package at a time: tests measure ageing and holding times, and share two cores and /run/vxbpf.
test: need-root need-test build $(GOTESTSUM) ## Run all tests: unit, program, end to end (root)
	VXBPF_BIN=$(CURDIR)/vxbpf $(GOTESTSUM) --format pkgname-and-test-fails -- ./... -count=1 -p 1 -timeout 40m

test-race: need-root need-test need-go ## The same with the race detector, daemon included (root; needs gcc)
	CGO_ENABLED=1 $(GO) build -race -o bin/vxbpf-race ./cmd/vxbpf
	VXBPF_BIN=$(CURDIR)/bin/vxbpf-race CGO_ENABLED=1 $(GO) test -race ./... -count=1 -p 1 -timeout 30m

# A failure names its seed: make test-kill SEED=n runs it again.
KILLS ?= 200
test-kill: need-root need-test build ## kill -9 at random moments of load, reload and unload (root; about 5 minutes)
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_KILLS=$(KILLS) VXBPF_SEED=$(SEED) $(GO) test ./testenv/e2e -run '^TestKillAtAnyMoment$$' -count=1 -v -timeout 30m

# OLD is a git ref, by default the last tag; beside it this tree with another layout of maps is swapped in and out.
OLD ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
test-upgrade: need-root need-test need-dev build ## Swap versions under traffic, up and down (root)
	GO=$(GO) testenv/e2e/other-version.sh $(CURDIR)/bin/changed
	$(if $(OLD),GO=$(GO) testenv/e2e/other-version.sh $(CURDIR)/bin/old $(OLD))
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_OTHER=$(CURDIR)/bin/changed$(if $(OLD),:$(CURDIR)/bin/old) $(GO) test ./testenv/e2e -run '^TestVersions$$' -count=1 -v -timeout 15m

# A failure names its seed: make test-diff SEED=n PROFILE=ipv4 runs it again. FRAMES is over all profiles.
FRAMES ?= 120000
SEED ?=
PROFILE ?= all
test-diff: need-root need-test build ## The same frames and sockets through kernel VXLAN and vxbpf, at length (root, about 15 minutes)
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_DIFF_FRAMES=$(FRAMES) VXBPF_DIFF_SEED=$(SEED) VXBPF_DIFF_PROFILE=$(PROFILE) \
		$(GO) test ./testenv/e2e -run '^TestDiff$$' -count=1 -v -timeout 30m
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_TEST_FULL=1 $(GO) test ./testenv/e2e -run '^(TestMatrix|TestCoexist)' -count=1 -v -timeout 30m

# Debian's kernels, in virtual machines: KERNELS="6.1 6.12", RUN=TestInterop, KERNEL_TEST_ARGS="-v testenv/e2e".
KERNELS ?= 5.10 6.1 6.12 7.3
RUN ?=
test-kernels: need-root need-test-kernels need-go ## Run the tests on Debian's 5.10, 6.1, 6.12 and 7.3 in virtual machines (root, amd64)
	$(GO) run ./testenv/vm -kernels '$(KERNELS)' -run '$(RUN)' $(KERNEL_TEST_ARGS)

# What differs from kernel to kernel, for CI: how programs load and attach, the fast path's share, what only these kernels have.
SHORT_RUN := ^(TestTries|TestPrograms|TestPacketState|TestConstants|TestInteropPair|TestFallback|TestLeftOverFilters|TestFastShare|TestUnderlays|TestNetem)$$
test-kernels-short: need-root need-test-kernels need-go ## A part of that on 6.1 and 6.12 only (root, amd64)
	$(GO) run ./testenv/vm -kernels '6.1 6.12' -run '$(SHORT_RUN)' testenv/need bpf testenv/e2e

bench: need-root build ## Compare vxbpf with kernel VXLAN and no overlay on this machine (root, under 20 minutes; BENCH=--quick: 2)
	./vxbpf bench $(BENCH)

# SCALE_IDLE is how long the daemon is watched at rest, for each size.
SCALE_IDLE ?= 100s
SCALE_OUT ?= scale.json
bench-scale: need-root need-test build ## Load, memory and CPU as networks, VTEPs and FDB entries grow by tens, and under churn (root, about 40 minutes)
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_SCALE=$(abspath $(SCALE_OUT)) VXBPF_SCALE_IDLE=$(SCALE_IDLE) $(GO) test ./testenv/e2e -run '^TestScale$$' -count=1 -v -timeout 90m

generate: need-go need-dev ## Compile the C programs and generate their Go package; commit both
	$(GO) generate ./bpf

check-generate: need-go need-dev ## Fail if the committed objects are not what the C files compile to
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	cp -R go.mod go.sum bpf "$$tmp" && rm "$$tmp"/bpf/*_bpfel.go "$$tmp"/bpf/*_bpfel.o && \
	(cd "$$tmp" && $(GO) generate ./bpf) && \
	for f in "$$tmp"/bpf/*_bpfel.go "$$tmp"/bpf/*_bpfel.o; do \
		cmp "$$f" "bpf/$${f##*/}" || { \
			echo "bpf/$${f##*/} is not what bpf/*.c compiles to here ($$(clang-19 --version | head -n 1)): run 'make generate' and commit the result" >&2; \
			exit 1; }; \
	done && \
	echo "bpf/*_bpfel.go and bpf/*_bpfel.o are up to date"

# TestPackage builds packages of its own; TestExport fetches the tools that read what export writes.
test-install: need-root need-test build package ## Import, packages, migration and Ansible at length: real ifupdown, networkd, dpkg, LXC, Ansible (root, 15 to 25 minutes)
	VXBPF_BIN=$(CURDIR)/vxbpf VXBPF_TEST_FULL=1 $(GO) test ./testenv/e2e -run '^(TestOldSetup|TestIfupdown|TestLXC|TestPackage|TestPackageScripts|TestMigration|TestMigrationGuide|TestExport|TestAnsible|TestAnsibleLint)$$' -count=1 -v -timeout 30m

# Packages that tests install on machines of their own (copies in namespaces), never on this one.
DEBS := ifupdown bridge-utils
debs: ## Fetch the packages that tests install in namespaces; apt-get download, nothing is installed here
	@mkdir -p bin/debs && cd bin/debs && for p in $(DEBS); do ls $${p}_*.deb >/dev/null 2>&1 || \
		{ rm -f $${p}_*; apt-get download -q $$p >fetch.log 2>&1 || { apt-get update -q >>fetch.log 2>&1 && apt-get download -q $$p >>fetch.log 2>&1; } || { cat fetch.log >&2; exit 1; }; }; done

# Those of the long tests, each in a directory with what it depends on and this machine has not.
DEBS_FULL := ifupdown2 netplan.io
debs-full: debs
	@for p in $(DEBS_FULL); do mkdir -p bin/debs/$$p/partial && \
		fetch() { apt-get install -q -y --download-only --no-install-recommends --no-upgrade -o Dir::Cache::archives=$(CURDIR)/bin/debs/$$p/ $$p >bin/debs/fetch.log 2>&1; } && \
		{ fetch || { apt-get update -q >/dev/null 2>&1 && fetch; } || { cat bin/debs/fetch.log >&2; exit 1; }; }; done

# A package's version begins with a digit and sorts: the tag, or the day of the commit before the next version.
PKG_VERSION ?= $(or $(patsubst v%,%,$(filter v%,$(VERSION))),0.1.0~git$(shell git log -1 --format=%cd.%h --date=format:%Y%m%d%H%M%S 2>/dev/null || echo 0))
ARCH ?= $(shell $(GO) env GOARCH)
NFPM_VERSION := v2.43.4
NFPM := bin/nfpm-$(NFPM_VERSION)
package: need-go $(NFPM) ## Build dist/*.deb and dist/*.rpm (ARCH=arm64 for another machine): static binary, unit, man pages, completion
	rm -rf dist/stage && mkdir -p dist/stage/completion
	CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '-s -w -X main.version=$(PKG_VERSION)' -o dist/stage/vxbpf ./cmd/vxbpf
	$(GO) build -tags man -o dist/stage/man-vxbpf ./cmd/vxbpf
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) dist/stage/man-vxbpf man dist/stage/man
	gzip -9n dist/stage/man/*.8
	for s in bash zsh fish; do dist/stage/man-vxbpf completion $$s >dist/stage/completion/$$s || exit 1; done
	for p in deb rpm; do ARCH=$(ARCH) PKG_VERSION=$(PKG_VERSION) $(NFPM) package -f tools/packaging/nfpm.yaml -p $$p -t dist/ || exit 1; done
	rm -rf dist/stage

$(NFPM): | need-go
	GOBIN=$(CURDIR)/bin GOOS= GOARCH= $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv bin/nfpm $@

lint: need-go need-dev $(GOLANGCI) ## Check formatting, vet, golangci-lint, clang-format, shellcheck
	@out=$$(gofmt -l .) && test -z "$$out" || { echo "not formatted, run gofmt -w: $$out" >&2; exit 1; }
	$(GO) vet ./...
	$(GOLANGCI) run ./...
	clang-format-19 --dry-run -Werror bpf/*.c bpf/*.h
	find . -path ./.git -prune -o -path ./bin -prune -o -type f -print0 | \
		xargs -0 awk 'FNR == 1 { if (/^#!.*[\/ ](ba|da)?sh( |$$)/) print FILENAME; nextfile }' | xargs -r shellcheck

$(GOTESTSUM): | need-go
	GOBIN=$(CURDIR)/bin $(GO) install gotest.tools/gotestsum@$(GOTESTSUM_VERSION)
	mv bin/gotestsum $@

$(GOLANGCI): | need-go
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/golangci-lint $@

deps: ## Install what test, generate and lint need on Debian 12+ or Ubuntu 24.04+ (root)
	@missing=; for c in $(TEST_COMMANDS) $(DEV_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	if [ -z "$$missing" ]; then echo "deps: all there"; exit 0; fi; \
	echo "deps: missing:$$missing"; \
	command -v apt-get >/dev/null || { echo "no apt-get here: install the equivalents of $(TEST_PACKAGES) $(DEV_PACKAGES)" >&2; exit 1; }; \
	test "$$(id -u)" = 0 || { echo "apt-get needs root: run 'sudo make deps'" >&2; exit 1; }; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q && apt-get install -q -y --no-install-recommends $(TEST_PACKAGES) $(DEV_PACKAGES)

clean: ## Remove what the targets above made
	rm -rf vxbpf bin dist

need-go:
	@$(GO) version >/dev/null 2>&1 || { echo "Go is missing: install Go 1.26 (https://go.dev/dl/), or 1.21+, which fetches it; or run make GO=/path/to/go" >&2; exit 1; }

need-root:
	@test "$$(id -u)" = 0 || { echo "network namespaces and BPF need root: run 'sudo make $(firstword $(MAKECMDGOALS))'" >&2; exit 1; }

# `make test` is one command on a fresh machine, so it gets what it runs by itself where it can.
need-test:
	@missing=; for c in $(TEST_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
		echo "the test suite needs$$missing: installing $(TEST_PACKAGES)"; \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -q -y --no-install-recommends $(TEST_PACKAGES); \
	fi
	$(call have,$(TEST_COMMANDS),the test suite)

need-test-kernels:
	@missing=; for c in $(KERNEL_TEST_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
		echo "the kernel tests need$$missing: installing $(KERNEL_TEST_PACKAGES)"; \
		export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -q -y --no-install-recommends $(KERNEL_TEST_PACKAGES); \
	fi
	$(call have,$(KERNEL_TEST_COMMANDS),the kernel tests)

need-dev:
	$(call have,$(DEV_COMMANDS),this target)
