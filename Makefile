# make reproduce | figures | test | test-browser | picture | lint | lab | report | replay | reference | lock | glyph-clip | emoji-clip | benchmark | clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# One kernel at a time: it may use every core. Set OMP_NUM_THREADS to leave some to others.
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export GOMP_SPINCOUNT ?= 20000
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: reproduce figures report replay reference test test-browser picture lint lab lock glyph-clip emoji-clip benchmark install clean
.DEFAULT_GOAL := reproduce

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

reproduce: $(STAMP)
	$(BIN)/reprolib run hubness -p dataset glyphs -p other_bank emoji --out runs/hubness-glyphs
	$(BIN)/reprolib run hubness -p dataset coco-clip-500 --out runs/hubness-coco-clip-500 --skip-unavailable
	$(BIN)/reprolib run modality-gap -p dataset glyphs --out runs/modality-gap-glyphs
	$(BIN)/reprolib run modality-gap -p dataset coco-clip-500 --out runs/modality-gap-coco-clip-500 --skip-unavailable
	$(BIN)/reprolib run intra-modal-inversion -p dataset glyphs --out runs/intra-modal-inversion-glyphs
	$(BIN)/reprolib run paper-versus-code -p dataset glyphs --out runs/paper-versus-code-glyphs
	$(BIN)/reprolib run paper-versus-code -p dataset coco-clip-500 --out runs/paper-versus-code-coco-clip-500 --skip-unavailable
	$(BIN)/reprolib run training-variance -p dataset glyphs --out runs/training-variance-glyphs
	$(BIN)/reprolib report --out report/index.html

report: $(STAMP)
	$(BIN)/reprolib report --out report/index.html

# Repeat the runs in reference/ and compare; write them anew after a change that is meant to change results.
replay: $(STAMP)
	set -e; for run in reference/*/; do $(BIN)/reprolib replay $$run; done

reference: $(STAMP)
	$(BIN)/python -m reprolib.study.reference

# One process for each core, up to four, with one thread each.
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest --ignore=tests/browser --numprocesses=logical --maxprocesses=4 --dist=loadfile

# JupyterLab in headless Chromium; skipped where there is none.
test-browser: $(STAMP)
	$(BIN)/python -m pytest tests/browser

# The README's picture, from the explorer in a browser.
picture: $(STAMP)
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	REPROLIB_SCREENSHOTS=$$folder $(BIN)/python -m pytest tests/browser/test_start_here.py -k plays; \
	cp "$$folder/explorer.png" docs/

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(NOTEBOOKS))

lab: $(STAMP)
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

# Pins are the closure that pip resolves in a fresh environment, without local version labels such as +cpu.
# torch is held: it is the dependency that moves the results, and its newest release need not have a CPU build.
TORCH ?= 2.13.0
lock:
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet '.[test]' torch==$(TORCH); \
	"$$folder/venv/bin/python" -m pip freeze --all --exclude reprolib --exclude pip > "$$folder/frozen"; \
	{ echo '# Made by `make lock`: the complete environment of pyproject.toml with its `test` group.'; \
	  sed -E 's/\+[A-Za-z0-9.]+$$//' "$$folder/frozen" | LC_ALL=C sort -f; } > "$$folder/lock"; \
	mv "$$folder/lock" requirements.lock

# Takes the artefacts out of the runs and draws every figure of the paper; `reprolib figures --check` compares.
figures: reproduce
	$(BIN)/reprolib figures --from runs

# Train the embedded models again (CPU or GPU).
glyph-clip: $(STAMP)
	$(BIN)/reprolib run train-clip --out runs/train-glyph-clip

emoji-clip: $(STAMP)
	$(BIN)/reprolib run train-clip -p dataset emoji --out runs/train-emoji-clip

benchmark: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

clean:
	rm -rf runs report .cache build dist .pytest_cache .ruff_cache .hypothesis .benchmarks
