# wasmvm: `make demo` shows it, `make test` proves it. `make help` lists the rest.

SHELL    := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX   ?= /usr/local
DESTDIR  ?=
# release: what ships. fast: the edit-run loop (no link-time optimisation).
PROFILE  ?= release
# Where everything built lands; `stage` is the tree that `make install` copies.
OUT      := build
STAGE    := $(OUT)/stage-$(PROFILE)
# It counts its jobs itself: make's own counter does not reach it.
CARGO    := env -u MAKEFLAGS -u MFLAGS cargo
# Lines for backtraces, no variables: debug builds write far less.
export CARGO_PROFILE_DEV_DEBUG ?= line-tables-only
# rust-toolchain.toml names the compiler. Where rustup has that one as its default, under whatever name, it is taken as it is.
ifndef RUSTUP_TOOLCHAIN
DEFAULT_TOOLCHAIN := $(shell rustup default 2>/dev/null | cut -d' ' -f1)
ifneq ($(filter $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml),$(if $(DEFAULT_TOOLCHAIN),$(shell rustup run $(DEFAULT_TOOLCHAIN) rustc -V 2>/dev/null))),)
export RUSTUP_TOOLCHAIN := $(DEFAULT_TOOLCHAIN)
endif
endif
SOAK_TASKS ?= 500
BINARIES := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/$(PROFILE)

.PHONY: help packages build stage images testbed demo test checks unit lint deny docs-check e2e it pods client-tests fuzz fuzz-vm soak bench shell check deb deb-test node-image install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

packages: ## install the Debian packages that building and testing need
	@tests/packages
	@tests/prune-cache
	@tests/crates take

stage: packages ## build all that is installed, into build/stage-PROFILE
	@tests/step "shim" $(CARGO) build --profile $(PROFILE) -p containerd-shim-wasmvm-v1
	@tests/step "holder of pods" $(CARGO) rustc --profile $(PROFILE) -p wasmvm-holder -- -C relocation-model=static
	@tests/step "VMM and command line" $(CARGO) build --profile $(PROFILE) -p wasmvm-vmm -p wasmvm-cli
	@mkdir -p $(STAGE)/bin $(STAGE)/lib/wasmvm
	@install $(BINARIES)/containerd-shim-wasmvm-v1 $(BINARIES)/wasmvm $(STAGE)/bin/
	@install $(BINARIES)/wasmvm-vmm $(BINARIES)/wasmvm-holder $(STAGE)/lib/wasmvm/
	@tests/step "guest agent and compiler" images/guest --profile $(PROFILE) $(STAGE)/lib/wasmvm
	@tests/step "guest kernel" kernel-config/build $(STAGE)/lib/wasmvm/kernel

images: packages ## build the example OCI images, into build/images
	@tests/step "example images" images/build $(OUT)/images

build: stage images

check: stage ## say whether this host's KVM can run a guest
	@$(STAGE)/bin/wasmvm check

demo: build ## the main job: containerd runs Wasm programs, each in a microVM
	@tests/where --stage $(STAGE) --images $(OUT)/images --add tests/demo:demo -- sh -c 'exec "$$WASMVM_FILES/demo"'

# What is checked without a VM and what is linked for one keep a processor busy each.
test: packages ## everything that must hold
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line checks build
	@tests/crates keep
	@$(MAKE) --no-print-directory e2e

checks:
	@for check in lint deny docs-check unit; do $(MAKE) --no-print-directory $$check; done

lint:
	@tests/step "vendored crate" guest-agent/vendored/check
	@tests/step "names of files" tests/names
	@tests/step "format" $(CARGO) fmt --check
	@tests/step "figures" tests/figures --check
	@tests/step "clippy" $(CARGO) clippy --workspace --all-targets -- -D warnings
	@tests/step "clippy, hunt" $(CARGO) clippy -p wasmvm-fuzz --features coverage -- -D warnings
	@tests/step "clippy, compiler" $(CARGO) clippy -p wasmvm-guest-agent --all-targets --features compiler -- -D warnings

deny:
	@tests/step "dependency policy" .ci/deny

docs-check:
	@RUSTDOCFLAGS="-D warnings" tests/step "documentation" $(CARGO) doc --workspace --no-deps --document-private-items

unit: ## unit tests, no VM
	@$(CARGO) test --workspace --exclude wasmvm-tests
	@$(CARGO) test -p wasmvm-guest-agent --features compiler
	@$(CARGO) test -p wasmvm-tests --lib

# The soak always has the same lives here; `make soak` chooses new ones.
e2e: build ## end-to-end tests, on the host's KVM or in the testbed
	@WASMVM_SOAK_SEED=$(or $(SOAK_SEED),1) tests/run-e2e --stage $(STAGE) --images $(OUT)/images

# TEST reaches the commands by the environment: its words are split, and read by no shell.
it: build ## one end-to-end test: make it TEST=name
	@set -f; tests/run-e2e --stage $(STAGE) --images $(OUT)/images $${TEST:-}

pods: build ## all of pods, on each containerd (TEST=name for some): make test has the main ones
	@set -f; tests/run-e2e --stage $(STAGE) --images $(OUT)/images $${TEST:-pods::}

client-tests: build ## containerd's own client tests with this runtime (downloads their Go packages; TEST=name for some)
	@tests/step "containerd's client tests" tests/client/build $(OUT)/client
	@set -f; tests/where --stage $(STAGE) --images $(OUT)/images --timeout 4000 $(foreach file,client.test registry,--add $(OUT)/client/$(file):client/$(file)) \
	    $(foreach file,inside left-out lsof,--add tests/client/$(file):client/$(file)) -- sh -c 'exec "$$WASMVM_FILES/client/inside" "$$@"' sh $${TEST:-}

fuzz: packages ## every fuzz target for TIME seconds, 60 without (TARGET="name ..." for some); docs/fuzzing.md
	@tests/fuzz/run $(or $(TIME),60) $(TARGET)

fuzz-vm: build ## guests that try all that ring 0 can for TIME seconds, 60 without (SEED=n repeats one)
	@WASMVM_RING0_SECONDS=$(or $(TIME),60) WASMVM_RING0_SEED=$(SEED) WASMVM_E2E_OPTIONS=--nocapture \
	    tests/run-e2e --stage $(STAGE) --images $(OUT)/images --timeout $$(($(or $(TIME),60) + 600)) ring0::

soak: build ## 500 tasks with random lives (SOAK_TASKS=n, SOAK_SEED=n repeats one)
	@WASMVM_SOAK_TASKS=$(SOAK_TASKS) WASMVM_SOAK_SEED=$(SOAK_SEED) WASMVM_E2E_OPTIONS=--nocapture \
	    tests/run-e2e --stage $(STAGE) --images $(OUT)/images --timeout 10800 soak::

bench: build ## the figures, by the testbed's instruction clock
	@tests/bench --stage $(STAGE) --images $(OUT)/images

shell: build ## a shell in the testbed, with everything installed
	@tests/where --shell --stage $(STAGE) --images $(OUT)/images

deb: stage ## make the Debian package, in build/deb
	@deploy/deb/build $(STAGE) $(OUT)/deb

deb-test: stage ## install, use and remove the package in an empty Debian 12 (downloads it once)
	@deploy/deb/test "$$(deploy/deb/build $(STAGE) $(OUT)/deb)" $(OUT)/deb

node-image: stage ## make the image that installs wasmvm on the nodes of a cluster, in build/kubernetes
	@deploy/kubernetes/image $(STAGE) $(OUT)/kubernetes

install: stage ## put binaries and guest files below PREFIX (default /usr/local)
	install -D -t $(DESTDIR)$(PREFIX)/bin $(STAGE)/bin/*
	install -D -t $(DESTDIR)$(PREFIX)/lib/wasmvm $(addprefix $(STAGE)/lib/wasmvm/,wasmvm-vmm wasmvm-holder)
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/wasmvm $(addprefix $(STAGE)/lib/wasmvm/,kernel agent.cpio compiler.cpio compiler.cpio.sha256)

uninstall: ## remove what install put there, and the memory of compiled programs
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,containerd-shim-wasmvm-v1 wasmvm)
	rm -rf $(DESTDIR)$(PREFIX)/lib/wasmvm
	[ -n "$(DESTDIR)" ] || ! mountpoint -q /run/wasmvm/artifacts || umount --lazy /run/wasmvm/artifacts
	[ -n "$(DESTDIR)" ] || rm -rf /run/wasmvm/artifacts /run/wasmvm/compile

clean: ## remove what was built in this folder (the cache outside stays)
	rm -rf $(OUT) target
