# Every verb of the project; `make help` lists them.
#
# DOVECOT_CONFIG  dovecot-config of the Dovecot to build for (default: the machine's)
# DESTDIR         install below this directory, for packagers: nothing is diverted then
# moduledir, libexecdir  where to install, default what dovecot-config says
# DEB_DIR         where `make deb` leaves the package, default build/<version>
# DEB_REVISION    added to the package's version, as +2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

DOVECOT_CONFIG ?= $(firstword $(wildcard /usr/lib/dovecot/dovecot-config \
	/usr/lib64/dovecot/dovecot-config /usr/local/lib/dovecot/dovecot-config))
export DOVECOT_CONFIG

dovecot_value = $(shell sed -n "s/^$(1)=//p" "$(DOVECOT_CONFIG)" 2>/dev/null | tr -d "\"'")
include_dir := $(call dovecot_value,dovecot_pkgincludedir)
version := $(shell sed -n 's/^\#define PACKAGE_VERSION "\([0-9.]*\).*/\1/p' "$(include_dir)/config.h" 2>/dev/null)
abi := $(shell sed -n 's/^\#define DOVECOT_ABI_VERSION "\(.*\)"/\1/p' "$(include_dir)/config.h" 2>/dev/null)
series := $(if $(filter 2.4%,$(version)),2.4,2.3)
moduledir ?= $(call dovecot_value,dovecot_moduledir)
libexecdir ?= $(call dovecot_value,dovecot_pkglibexecdir)

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
out := build/$(version)
# One target directory per Dovecot: bindings of two versions never meet.
target := $(CARGO_TARGET_DIR)/dovecot-$(version)
cargo := CARGO_TARGET_DIR=$(target) $(CARGO)
cdylib = $(cargo) rustc --locked --lib --crate-type cdylib --no-default-features --profile module --features "$(1)"

# What is built, and where it goes.
installed := \
	$(moduledir)/lib20_replication_plugin.so \
	$(moduledir)/settings/lib10_replication_settings.so \
	$(moduledir)/doveadm/lib10_doveadm_replicator_plugin.so \
	$(libexecdir)/aggregator \
	$(libexecdir)/replicator

##@ Use
.PHONY: help
help: ## List the verbs
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Two nodes replicate real mail; KEEP=1 leaves them running, DOVECOT=2.4 is on 2.4
	@tests/demo/demo

.PHONY: build
build: require-dovecot ## Build for the Dovecot at hand into build/<version>/
	@mkdir -p $(out)
	@$(call cdylib,plugin)
	@$(call place,$(target)/module/libdovecot_replication.so,$(out)/lib20_replication_plugin.so)
	@$(call cdylib,doveadm)
	@$(call place,$(target)/module/libdovecot_replication.so,$(out)/lib10_doveadm_replicator_plugin.so)
	@$(cargo) build --locked --release --bins --features daemon
	@$(call place,$(target)/release/aggregator,$(out)/aggregator)
	@$(call place,$(target)/release/replicator,$(out)/replicator)
	@$(CC) -shared -fPIC -O2 -g -Wall -Wextra -fvisibility=hidden -DHAVE_CONFIG_H -I"$(include_dir)" \
		c-shim/settings.c c-shim/settings-$(series).c c-shim/settings-module-$(series).c -o $(out)/lib10_replication_settings.so.new
	@mv -f $(out)/lib10_replication_settings.so.new $(out)/lib10_replication_settings.so
	@echo "built for Dovecot $(version): $(out)/"

# What tests and demo mount over Dovecot's library directory: a copy of it with our files in it.
.PHONY: stage
stage: require-dovecot
	@rm -rf $(out)/lib.new $(out)/destdir
	@$(MAKE) --no-print-directory --silent install DESTDIR="$(CURDIR)/$(out)/destdir" >/dev/null
	@cp -a "$(libexecdir)" $(out)/lib.new
	@cp -a "$(out)/destdir$(libexecdir)/." $(out)/lib.new/
	@rm -rf $(out)/lib $(out)/destdir && mv $(out)/lib.new $(out)/lib

# The headers alone, for `make foreign` in a root that has another Dovecot.
.PHONY: headers
headers: require-dovecot
	@rm -rf $(out)/headers && mkdir -p $(out)/headers
	@cp -rL "$(include_dir)" $(out)/headers/include
	@printf 'dovecot_pkgincludedir=%s\ndovecot_pkglibdir=%s\n' "$(CURDIR)/$(out)/headers/include" "$(libexecdir)" \
		>$(out)/headers/dovecot-config

# The mail plugin for the release of DOVECOT_CONFIG's headers and this system's C library; never installed.
.PHONY: foreign
foreign: require-dovecot
	@$(call cdylib,plugin)
	@$(call place,$(target)/module/libdovecot_replication.so,$(out)/foreign/lib20_replication_plugin.so)

# The mail plugin that panics where a test wants it; never installed.
.PHONY: panics
panics: require-dovecot
	@$(call cdylib,plugin panics)
	@$(call place,$(target)/module/libdovecot_replication.so,$(out)/panics/lib20_replication_plugin.so)

load-2.3 := mail_plugins = \$$mail_plugins notify replication
load-2.4 := mail_plugins { notify = yes  replication = yes }

.PHONY: install
install: require-dovecot ## Install what was built, diverting the distribution's files of the same names
	@$(no_package)
	@$(is_built)
	@$(foreach file,$(installed),$(call divert,$(file)); $(call place,$(out)/$(notdir $(file)),$(DESTDIR)$(file));)
	@echo "installed. Load the plugin with: $(load-$(series))"

.PHONY: uninstall
uninstall: require-dovecot ## Take out what was installed and restore the distribution's files
	@$(no_package)
	@test -n "$(DESTDIR)" || { . debian/lib.sh; named_in_conf $(series); }
	@$(foreach file,$(installed),if $(call is_ours,$(DESTDIR)$(file)); then rm -f "$(DESTDIR)$(file)"; fi; $(call restore,$(file));)
	@echo "uninstalled"

DEB_DIR ?= $(out)
.PHONY: deb
deb: require-dovecot ## Make a Debian package of what was built, for exactly this Dovecot
	@rm -rf $(DEB_DIR)/deb $(DEB_DIR)/dovecot-replication_*.deb
	@$(MAKE) --no-print-directory --silent install DESTDIR="$(abspath $(DEB_DIR))/deb/root" >/dev/null
	@debian/build "$(DEB_DIR)" "$(version)" "$(abi)" "$(moduledir)" "$(libexecdir)"

##@ Work on it
.PHONY: setup
setup: ## Install the packages that build, tests and demo need (apt)
	@.ci/setup

.PHONY: test
test: setup ## All tests, on every Dovecot that we support
	@tests/run

.PHONY: check
check: ## Format, lints and the tree's own rules
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --features services -- -D warnings
	$(cargo) clippy --locked --lib --no-default-features --features plugin -- -D warnings
	$(cargo) clippy --locked --lib --no-default-features --features doveadm -- -D warnings
	$(cargo) clippy --locked --lib --bins --features daemon -- -D warnings
	$(CARGO) test --locked --quiet --test tree
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; else echo "cargo-deny is not installed: dependencies not checked"; fi

.PHONY: header
header: ## Write include/ anew from the Rust that C calls
	UPDATE_HEADER=1 $(CARGO) test --locked --quiet --test tree

.PHONY: bench
bench: setup ## Comparisons with stock, side by side in one run
	@$(MAKE) --no-print-directory build stage
	@tests/bench/bench

.PHONY: soak
soak: setup ## Random writing on both nodes with faults; MINUTES=, SEED=, VERSIONS=, FORMATS=, FAULTS=, CLOCK=, STOCK=
	@tests/soak/soak

.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZ_SECS seconds each (default 30)
	@tests/fuzz/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf build $(CARGO_TARGET_DIR)

.PHONY: require-dovecot
require-dovecot:
	@test -n "$(version)" || { echo "Dovecot's headers were not found (dovecot-config: '$(DOVECOT_CONFIG)'): \
	install dovecot-dev (Debian: make setup), or name the file in DOVECOT_CONFIG" >&2; exit 1; }

is_built = for name in $(notdir $(installed)); do test -e "$(out)/$$name" || \
	{ echo "$(out)/$$name is missing: run 'make build' first" >&2; exit 1; }; done

# Files that dpkg put there are dpkg's to take away.
no_package = test -n "$(DESTDIR)" || ! command -v dpkg-query >/dev/null || \
	test "$$(dpkg-query -W -f '$${db:Status-Status}' dovecot-replication 2>/dev/null)" != installed || \
	{ echo "the package dovecot-replication is installed: remove it first (apt-get remove dovecot-replication)" >&2; exit 1; }

# A file that a process has mapped is never written: a new one takes its name.
# Steps are separated by `;`, here and below: the shell's -e does not end on a failure before an `&&`.
place = mkdir -p "$(dir $(2))"; install -m $(if $(filter %.so,$(2)),0644,0755) "$(1)" "$(2).new"; mv -f "$(2).new" "$(2)"

# src/lib.rs and c-shim/settings-module.c put this mark into everything that we build.
is_ours = grep -aqs 'dovecot-replication module' "$(1)"

# Dovecot loads every *.so of the directory, so the diverted name must not end in it.
diverted = $(1).distrib
divert = if test -n "$(DESTDIR)"; then :; \
	elif command -v dpkg-divert >/dev/null && dpkg -S "$(1)" >/dev/null 2>&1; then \
		dpkg-divert --quiet --local --rename --divert "$(call diverted,$(1))" --add "$(1)"; \
		echo "diverted: the distribution's $(notdir $(1)) is now $(call diverted,$(1))"; \
	elif test -e "$(1)" && ! test -e "$(call diverted,$(1))" && ! $(call is_ours,$(1)); then \
		mv "$(1)" "$(call diverted,$(1))"; echo "moved: $(1) is now $(call diverted,$(1))"; fi
# Also where an install or uninstall was cut off in between; never over a file that is not ours.
restore = if test -n "$(DESTDIR)" || test -e "$(1)"; then :; \
	elif command -v dpkg-divert >/dev/null && test "$$(dpkg-divert --truename "$(1)")" = "$(call diverted,$(1))"; then \
		dpkg-divert --quiet --local --rename --remove "$(1)"; echo "restored: $(1)"; \
	elif test -e "$(call diverted,$(1))"; then mv "$(call diverted,$(1))" "$(1)"; echo "restored: $(1)"; fi
