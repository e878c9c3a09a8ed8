# Everything that is done with this repository. `make help` lists the targets.

# release is what is shipped; ci builds the same shape faster, without whole-program optimisation.
BUILD   ?= release
# virtual: guests, with Debian's small kernel. metal: servers, with its general one and their drivers.
PROFILE ?= virtual
CONFIG  ?= configs/demo.yaml
CARGO   ?= cargo
# How long each fuzz target runs.
SECONDS ?= 600
# The suites that make clients runs: python-etcd etcd3 etcd-client when it is empty.
SUITES ?=
# What make bench measures: all when it is empty.
PARTS ?=

dist = $(if $(filter metal,$(PROFILE)),dist/metal,dist)
qemu = $(CARGO) run --quiet --package orlop-qemu --

.DEFAULT_GOAL := help
.PHONY: help deps image demo run cluster test clients fuzz torture bench check fmt clippy doc crates size clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  BUILD=$(BUILD)  the cargo profile of the binary (release, ci)"
	@echo "  PROFILE=$(PROFILE)  what make image builds for (virtual, metal: to dist/metal)"
	@echo "  CONFIG=$(CONFIG)  the cloud-config for make run"
	@echo "  SECONDS=$(SECONDS)  how long make fuzz runs each target"
	@echo "  SUITES=$(SUITES)  what make clients runs (python-etcd etcd3 etcd-client); all by default"
	@echo "  PARTS=$(PARTS)  what make bench measures (boots sizes disk memory netboot scheduling store); all by default"

deps: ## install the Debian packages that are missing (root or sudo)
	@./qemu/install-packages

image: deps ## build dist/: kernel, initramfs, slot, disks, live medium, payload, sums, SBOM
	@$(qemu) image --build $(BUILD) --profile $(PROFILE) --output $(dist)

demo: deps ## boot a guest and restart it; boot three that are one, cut the power of one
	@$(qemu) demo --build $(BUILD)

run: deps ## boot a guest with CONFIG=..., its console on this terminal
	@$(qemu) run --build $(BUILD) $(CONFIG)

cluster: deps ## boot three guests that are one, until the end of the input
	@$(qemu) cluster --build $(BUILD)

test: image ## run all tests, those that boot guests included
	ORLOP_BUILD=$(BUILD) $(CARGO) test --workspace

clients: deps ## run the suites of etcd's clients against etcd and the store (fetches them)
	$(CARGO) build --package orlop
	@CARGO="$(CARGO)" tests/clients/run target/x86_64-unknown-linux-gnu/debug/orlop $(SUITES)

torture: image ## break slots in every way, cut the power, cut off the store's members; slow (ORLOP_SEED=N repeats)
	$(CARGO) test --package orlop-store --test store -- --ignored --nocapture
	ORLOP_BUILD=$(BUILD) $(CARGO) test --package orlop-tests --test guests -- --ignored --nocapture --test-threads=1

fuzz: ## run every fuzz target for SECONDS each; what is found lies in fuzz/artifacts
	CARGO="$(CARGO)" ./fuzz/run $(SECONDS)

bench: deps ## measure boots beside other inits, the store beside etcd, sizes; against their bars
	@$(qemu) bench --build $(BUILD) $(PARTS)

check: deps fmt clippy doc crates size ## format, lints, documentation, licences, size

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

crates:
	@CARGO="$(CARGO)" ./.ci/check-crates

size: image
	@./.ci/check-binary dist/orlop

clean: ## remove all that was built
	$(CARGO) clean
	rm -rf build dist
