# Two commands matter: `make demo` and `make test`. Both set up what they need in environments of their own.

PYTHON ?= python3
SEED ?= 0
ROUNDS ?= 10
INPUTS ?= 1000000
LABELS ?=
DATA ?=
RUN ?= runs/demo
SMALL_IMAGE_TOOLS = squashfs-tools dosfstools mtools fdisk grub-efi-amd64-bin grub-common rauc bmap-tools
FIRMWARE_TOOLS = $(SMALL_IMAGE_TOOLS) mmdebstrap uidmap qemu-system-x86 ovmf mosquitto
FIRMWARE_TOOLS_ARM64 = qemu-user-static arch-test qemu-system-arm qemu-efi-aarch64

# The demo's environment has no torch, like a device; the other one has everything.
DEMO_VENV = .venv-demo
VENV = .venv
SECURE ?=
OPTIONS = $(if $(SECURE),--secure) --seed $(SEED) --rounds $(ROUNDS) $(if $(LABELS),--labels-per-class $(LABELS)) --directory $(RUN)

.PHONY: help demo test test-system bench lint format types package clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

ifeq ($(DATA),)
demo: $(DEMO_VENV)/installed  ## a fleet of 8 simulated machines; with DATA=DIR a fleet directory; SECURE=1: as in production
	@$(DEMO_VENV)/bin/graftwork-simulate demo $(OPTIONS)
else
demo: $(VENV)/installed
	@$(VENV)/bin/graftwork-simulate run --data $(DATA) $(OPTIONS)
endif

.PHONY: firmware-demo
firmware-demo: $(VENV)/installed firmware-tools  ## build, boot, update and break a device image in a virtual machine
	@$(VENV)/bin/graftwork-simulate firmware --directory runs/firmware

.PHONY: firmware-tools
firmware-tools:
	@$(VENV)/bin/graftwork-firmware doctor > /dev/null 2>&1 || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(FIRMWARE_TOOLS) > /dev/null; } || \
	$(VENV)/bin/graftwork-firmware doctor

.PHONY: firmware-tools-arm64
firmware-tools-arm64: firmware-tools  ## what images for arm64 need beside; no test needs it
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(FIRMWARE_TOOLS_ARM64) > /dev/null
	$(VENV)/bin/graftwork-firmware doctor

.PHONY: test-firmware
test-firmware: $(VENV)/installed mosquitto firmware-tools  ## boots device images: a whole life with updates, refusals, power cuts
	GRAFTWORK_BOOT=1 $(VENV)/bin/python -m pytest tests/boot

test: $(VENV)/installed mosquitto postgresql small-image-tools  ## every test
	$(VENV)/bin/python -m pytest

bench: $(VENV)/installed mosquitto  ## the published figures; the real data sets are in $$GRAFTWORK_DATA
	$(VENV)/bin/python -m benchmarks.codec
	$(VENV)/bin/python -m benchmarks.install
	$(VENV)/bin/python -m benchmarks.engines --plot runs/benchmarks/engines.png
	$(VENV)/bin/python -m benchmarks.vs_flower --plot runs/benchmarks/vs_flower.png
	$(VENV)/bin/python -m benchmarks.fleets
	$(VENV)/bin/python -m benchmarks.accuracy --plot runs/benchmarks/accuracy.png
	$(VENV)/bin/python -m benchmarks.joining
	$(VENV)/bin/python -m benchmarks.unlabelled
	$(VENV)/bin/python -m benchmarks.sending --plot runs/benchmarks/sending.png
	$(VENV)/bin/python -m benchmarks.oracle
	$(VENV)/bin/python -m benchmarks.robust
	$(VENV)/bin/python -m benchmarks.schedule --plot runs/benchmarks/schedule.png
	$(VENV)/bin/python -m benchmarks.relatedness
	$(VENV)/bin/python -m benchmarks.withdrawals
	$(VENV)/bin/python -m benchmarks.anomaly
	$(VENV)/bin/python -m benchmarks.crash
	$(VENV)/bin/python -m benchmarks.trust

.PHONY: bench-crash bench-engines bench-flower bench-install bench-trust
bench-trust: $(VENV)/installed mosquitto  ## attacks on a secured fleet, and its enrolment through kills
	$(VENV)/bin/python -m benchmarks.trust

bench-crash: $(VENV)/installed mosquitto  ## kill -9 at 200 moments: is an update lost, or counted twice?
	$(VENV)/bin/python -m benchmarks.crash

bench-engines: $(VENV)/installed  ## the agent's training against PyTorch
	$(VENV)/bin/python -m benchmarks.engines --plot runs/benchmarks/engines.png

bench-flower: $(VENV)/installed mosquitto  ## a federation against Flower, which gets an environment of its own
	$(VENV)/bin/python -m benchmarks.vs_flower --plot runs/benchmarks/vs_flower.png

bench-install: $(VENV)/installed  ## what a device has to install
	$(VENV)/bin/python -m benchmarks.install

.PHONY: fuzz
fuzz: $(VENV)/installed  ## 1,000,000 hostile inputs for every decoder; takes about an hour; INPUTS=N for fewer
	@$(VENV)/bin/python -c 'import atheris' 2> /dev/null || $(VENV)/bin/python -m pip install --quiet --group fuzz
	nice -n 10 $(VENV)/bin/python -m tests.fuzz all --inputs $(INPUTS) --workers 2

.PHONY: audit
audit: $(VENV)/installed  ## known vulnerabilities of all dependencies; asks the internet
	@$(VENV)/bin/python -c 'import pip_audit' 2> /dev/null || $(VENV)/bin/python -m pip install --quiet 'pip-audit>=2.7'
	$(VENV)/bin/python -m pip_audit --local --skip-editable

.PHONY: test-engines
test-engines: $(VENV)/installed  ## the contract of every training engine, each in an environment of its own
	$(VENV)/bin/python -m tests.engines.environments

.PHONY: test-oracle
test-oracle: $(VENV)/installed  ## aggregation rules and attacks against ByzFL, in an environment of its own
	$(VENV)/bin/python -c 'from benchmarks.peers.environment import BYZFL; BYZFL.make()'
	$(VENV)/bin/python -m pytest -m oracle tests/benchmarks

test-system: $(VENV)/installed mosquitto  ## only the tests with real processes and a real broker
	$(VENV)/bin/python -m pytest -m system

lint: $(VENV)/installed  ## formatting, style, types, import rules, spelling
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell

format: $(VENV)/installed  ## put the code into shape
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

package: $(VENV)/installed  ## make the demo's model package again
	$(VENV)/bin/graftwork-simulate generate runs/package/fleet
	$(VENV)/bin/graftwork-models pretrain runs/package/fleet --name vibration-demo \
		--description "simulated vibration of rotating machines" --output simulation/demo/vibration.zip

# Not a file: looked for each time, installed where that is possible, done without where it is not.
.PHONY: mosquitto
mosquitto:
	@PATH="$$PATH:/usr/sbin"; command -v mosquitto > /dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mosquitto > /dev/null; } || \
	echo "mosquitto is not installed: the tests that need it are skipped (Debian: apt install mosquitto)"

.PHONY: small-image-tools
small-image-tools:
	@PATH="$$PATH:/usr/sbin:/sbin"; ( for tool in mksquashfs mkfs.vfat mcopy sfdisk grub-mkimage rauc bmaptool; do \
	  command -v $$tool > /dev/null || exit 1; done; test -d /usr/lib/grub/x86_64-efi ) || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends $(SMALL_IMAGE_TOOLS) > /dev/null; } || \
	echo "tests of small images are skipped (Debian: apt install $(SMALL_IMAGE_TOOLS))"

.PHONY: postgresql
postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql > /dev/null; } || \
	echo "PostgreSQL is not installed: the tests that need it are skipped (Debian: apt install postgresql)"

$(DEMO_VENV)/installed: pyproject.toml
	@echo "setting up the demo's environment in $(DEMO_VENV); takes a minute, once" >&2
	@$(call make_environment,$(DEMO_VENV))
	$(DEMO_VENV)/bin/python -m pip install --quiet --editable '.[simulation]'
	@touch $@

$(VENV)/installed: pyproject.toml
	@echo "setting up the environment in $(VENV), with torch; takes minutes, once" >&2
	@$(call make_environment,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --editable '.[simulation,models,postgresql,firmware]' --group test --group lint
	@touch $@

clean:  ## remove environments and runs
	rm -rf $(VENV) $(DEMO_VENV) .venv-engine-* .venv-peers runs

define make_environment
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
{ echo "Graftwork needs Python 3.10 or newer; name one with: make PYTHON=/path/to/python"; exit 1; }; \
$(PYTHON) -m venv $(1) > /dev/null 2>&1 || \
{ rm -rf $(1); [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv > /dev/null && $(PYTHON) -m venv $(1); } || \
{ echo "cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }; \
$(1)/bin/python -m pip install --quiet --upgrade pip
endef
