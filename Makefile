# The project's task names; there are no others. `make` alone lists them.

CARGO ?= cargo
# rustup's cargo, in a shell that was opened before rustup was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Where tools of the build's own go (cargo-deny, cargo-fuzz, the oldest supported Rust). Never system-wide.
export TOOLS ?= $(CURDIR)/target/tools
# Lets the tests inject faults into the library's callbacks and threads.
TEST_FLAGS = --locked --features _faults
# Most tests wait for others, so more of them run at once than there are processors.
export RUST_TEST_THREADS ?= 6
# What runs under valgrind: a filter on the names of the integration tests; the core of them when empty.
ASAN_TESTS ?=
# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help deps demo test test-user test-asan lint doc bench fuzz deny msrv slim vendored builds \
        docker-up docker-test docker-down ci

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

deps: ## install the packages that building and testing need, where they are missing
	@.ci/deps all

demo: ## build, start a throw-away sshd and play the tutorial's programs against it
	@.ci/deps demo
	@$(CARGO) run --quiet --locked -- demo

test: ## run all tests: unit, integration, examples, documentation
	@.ci/deps all
	$(CARGO) test $(TEST_FLAGS)

test-user: ## as root: run the integration tests once more as a normal user
	@.ci/test-user $(TEST_FLAGS)

test-asan: ## run the unit tests and ASAN_TESTS under valgrind's memcheck
	@.ci/deps all
	@.ci/test-asan "$(ASAN_TESTS)" $(TEST_FLAGS)

lint: ## formatting, clippy and shellcheck; no warnings allowed
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/downstream/Cargo.toml --all --check
	$(CARGO) clippy --locked --all-targets --features _faults -- -D warnings
	$(CARGO) clippy --locked --lib --examples --no-default-features -- -D warnings
	@.ci/shellcheck

doc: ## build the documentation as docs.rs does; no warnings allowed
	@.ci/doc

bench: ## measure against OpenSSH, plain ssh2, paramiko and, where it is installed, Go, in one run
	@.ci/deps all
	$(CARGO) bench --locked --bench ssh

fuzz: ## run each fuzz target for FUZZ_SECONDS
	@.ci/fuzz $(FUZZ_SECONDS)

deny: ## licences, sources, duplicate crates and, where its database answers, advisories
	@.ci/deny

msrv: ## build library and tool with the oldest supported Rust
	@.ci/msrv

slim: ## build the library alone and prove that the tool's crates stay out
	@.ci/slim

vendored: ## build with OpenSSL from source
	@.ci/vendored

builds: ## build and run in each way a user might: profiles, linkers, libraries for C, beside git2
	@.ci/deps all
	@.ci/builds

docker-up: ## start three hosts in containers
	@docker/hosts up

docker-test: ## run the tests that pause, cut off and restart those hosts
	@docker/hosts test

docker-down: ## stop and remove the hosts
	@docker/hosts down

# The tests come last, so that their result lines close the output.
ci: ## everything a change has to pass
	@.ci/step deps $(MAKE) deps
	@.ci/step lint $(MAKE) lint
	@.ci/step slim $(MAKE) slim
	@.ci/step doc $(MAKE) doc
	@.ci/step deny $(MAKE) deny
	@.ci/step msrv $(MAKE) msrv
	@.ci/step vendored $(MAKE) vendored
	@.ci/step builds $(MAKE) builds
	@.ci/step docker-test docker/hosts ci
	@.ci/step test-user $(MAKE) test-user
	@.ci/step --last test $(MAKE) test
