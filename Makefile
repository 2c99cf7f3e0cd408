# make run            an archive on 127.0.0.1:11112 in ./dicom-archive, which begins with some images of pydicom, and its pages
#                     at http://127.0.0.1:8080/
# make test           all tests; installs DCMTK and the other peers for them when it can
# make fuzz           arbitrary bytes for all that reads what a peer sends; FUZZ_SECONDS=120 for each target
# make load           twist dicom under more than it should get: a thousand associations, thousands of idle connections
# make soak           twist dicom among all kinds of peers for SOAK_SECONDS=600; its memory has to be flat
# make docs           the documentation, into build/docs
# make picture        docs/rooms.svg, the picture of the package, from the imports of the code; docs/terminal.svg, from its output;
#                     docs/page-*.png, the pages in Chromium
# make bench          measures beside DCMTK, Orthanc and pynetdicom, and writes docs/benchmarks.md; BENCH="echo tls-*" these only
# make changelog VERSION=1.2.0   CHANGELOG.md from the files in changelog.d, for a release
# make prose          sentences in code and pages to rewrite, see CONTRIBUTING.md
# make lint types package-check lowest-check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORAGE ?= dicom-archive
HTTP_PORT ?= 8080
# The images of a new archive.
SAMPLES := CT_small MR_small examples_overlay examples_palette examples_rgb_color examples_ybr_color liver_1frame rtdose test-SR
TESTS ?= tests
# Processes that run tests at once: most of them wait for servers to start.
JOBS ?= -j 3
BENCH ?=
FUZZ_SECONDS ?= 120
SOAK_SECONDS ?= 600
# The viewer of the tests in tests/browser, which name this folder as well.
OHIF := ohif-app-3.12.10
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dicomtwist

METADATA := setup.cfg pyproject.toml
BASE := $(VENV)/.installed
TEST := $(VENV)/.installed-test
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
FUZZ := $(VENV)/.installed-fuzz

.PHONY: run test lint prose format types changelog package-check lowest-check docs picture bench load soak fuzz peers clean

run: $(BASE)
	@echo "An archive on 127.0.0.1:11112 that keeps what it receives in $(STORAGE)/. In a browser:"
	@echo
	@echo "    http://127.0.0.1:$(HTTP_PORT)/"
	@echo
	@echo "Send it an image from another terminal, with DCMTK:"
	@echo
	@echo "    storescu 127.0.0.1 11112 $$($(BIN)/python -c \
	  'from pydicom.data import get_testdata_file as f; print(f("CT_small.dcm", download=False))')"
	@echo
	@mkdir -p build/samples && $(BIN)/python -c 'import shutil, sys; from pydicom.data import get_testdata_file as f; \
	  [shutil.copy(f(name + ".dcm", download=False), sys.argv[1]) for name in sys.argv[2:]]' build/samples $(SAMPLES)
	@exec $(BIN)/twist dicom --storage $(STORAGE) $(if $(wildcard $(STORAGE)),,--import build/samples) \
	  --http tcp:$(HTTP_PORT):interface=127.0.0.1

test: $(TEST) peers
	$(BIN)/python -m twisted.trial $(JOBS) $(TESTS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m tests.prose
	$(BIN)/towncrier build --draft --version next >/dev/null

prose: $(TEST)
	$(BIN)/python -m tests.prose

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)
	$(BIN)/mypy

changelog: $(DEV)
	@[ -n "$(VERSION)" ] || { echo "make changelog VERSION=1.2.0"; exit 1; }
	$(BIN)/towncrier build --yes --version $(VERSION)

package-check: $(DEV)
	$(BIN)/python .ci/packaging_check.py

lowest-check: $(DEV)
	$(BIN)/python .ci/lowest_versions.py

docs: $(DOCS)
	$(BIN)/python -m sphinx -q -W -j auto docs build/docs
	@echo "build/docs/index.html"

picture: $(TEST)
	$(BIN)/python -m tests.rooms_picture
	$(BIN)/python -m tests.terminal_picture
	$(BIN)/python -m tests.page_pictures

bench: $(TEST) peers
	set -f; $(BIN)/python -m benchmarks $(BENCH) --write docs/benchmarks.md

load: $(TEST)
	$(BIN)/python -m benchmarks.load

soak: $(TEST)
	$(BIN)/python -m benchmarks.soak --seconds $(SOAK_SECONDS)

fuzz: $(FUZZ)
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

# DCMTK, Orthanc, GDCM and dcmjs-dimse are peers in the tests, haproxy stands before the server, rsyslog receives its audit trail, Wireshark's tshark reads what
# we write, the command is completed in zsh and fish, and OHIF shows images in Chromium. Where they are missing and cannot be installed the
# tests that need them are skipped, or fail when CI=true.
peers:
	@missing=; \
	ls /usr/bin/dcmdump /usr/local/bin/dcmdump >/dev/null 2>&1 || command -v dcmdump >/dev/null || missing=dcmtk; \
	command -v text2pcap >/dev/null && command -v tshark >/dev/null || missing="$$missing tshark"; \
	ls /usr/sbin/Orthanc >/dev/null 2>&1 || command -v Orthanc >/dev/null || missing="$$missing orthanc"; \
	ls /usr/share/orthanc/plugins/libOrthancDicomWeb.so >/dev/null 2>&1 || missing="$$missing orthanc-dicomweb"; \
	command -v gdcmscu >/dev/null || missing="$$missing libgdcm-tools"; \
	ls /usr/sbin/haproxy >/dev/null 2>&1 || command -v haproxy >/dev/null || missing="$$missing haproxy"; \
	ls /usr/sbin/rsyslogd >/dev/null 2>&1 || command -v rsyslogd >/dev/null || missing="$$missing rsyslog rsyslog-gnutls"; \
	ls /usr/lib/chromium/chromium >/dev/null 2>&1 || command -v chromium >/dev/null || missing="$$missing chromium"; \
	for shell in zsh fish; do command -v $$shell >/dev/null || missing="$$missing $$shell"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	  else \
	    echo "Not installed: $$missing. The tests that need them are skipped."; \
	  fi; \
	fi; \
	if command -v npm >/dev/null && [ ! -d $(VENV)/node/node_modules/dcmjs-dimse ]; then \
	  npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/node dcmjs-dimse@0.3 || \
	  echo "Not installed: dcmjs-dimse. The test that needs it is skipped."; \
	fi; \
	if command -v npm >/dev/null && [ ! -d $(CACHE)/$(OHIF) ]; then \
	  mkdir -p $(CACHE) && folder=$$(mktemp -d $(CACHE)/new-XXXXXX) && ( \
	    npm pack --silent --pack-destination $$folder @ohif/app@$(OHIF:ohif-app-%=%) >/dev/null && \
	    tar -xzf $$folder/$(OHIF).tgz -C $$folder --exclude='*.map' && rm $$folder/$(OHIF).tgz && chmod 755 $$folder && \
	    mv -T $$folder $(CACHE)/$(OHIF) || rm -rf $$folder; \
	  ); [ -d $(CACHE)/$(OHIF) ] || echo "Not there: OHIF. The tests that need it are skipped."; \
	fi

# One virtual environment; the stamp files say what has been installed into it.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): $(METADATA) | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[archive,metrics,page,pixels,tools]'
	@touch $@

$(TEST): $(METADATA) | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@ $(BASE)

$(DEV): $(METADATA) | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test,dev]'
	@touch $@ $(TEST) $(BASE)

$(DOCS): $(METADATA) | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@ $(BASE)

$(FUZZ): $(METADATA) | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[fuzz]'
	@touch $@ $(BASE)

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .fuzz .hypothesis .mypy_cache .ruff_cache twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
