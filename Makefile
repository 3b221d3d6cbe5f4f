# Two commands: `make lab` to learn, `make test` to check. Both set up everything they need first.
PYTHON ?= python3
PY     := .venv/bin/python
READY  := .venv/.ready
LESSON ?= notebooks/00_first_adapter.ipynb
ROOT   := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab test setup install notebooks bench clean

help:
	@echo "make lab        set up, then open JupyterLab on the first lesson   (ARGS=--no-browser: options for JupyterLab)"
	@echo "make test       set up, then run every test                        (ARGS='-k name': options for pytest)"
	@echo "make setup      only set up: virtual environment, packages, model"
	@echo "make notebooks  write the lessons from their text twins and run them  (ARGS=01_low_rank_math: only that one)"
	@echo "make bench      measure the lesson's recipe: scores by seed, and speed beside trl's SFTTrainer"
	@echo "make clean      remove the virtual environment; the model and your files stay"

lab: setup
	@echo "Starting JupyterLab; stop it with Ctrl+C."
	@$(PY) -m jupyterlab $(ROOT) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(LESSON) $(ARGS)

test: setup
	@$(PY) tools/get_browser.py
	@$(PY) -m pytest $(ARGS)

# The stamp is written last, so an interrupted set-up is noticed and started over.
setup:
	@if ! $(PY) -c "" 2>/dev/null || ! [ $(READY) -nt pyproject.toml ] || ! [ $(READY) -nt constraints.txt ]; \
	then $(MAKE) --no-print-directory install; fi
	@$(PY) -m lora_lab.cache

install:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	{ echo "lora-lab needs Python 3.11 or newer as '$(PYTHON)'. Name one: make lab PYTHON=/path/to/python3.12"; exit 1; }
	@if [ -e .venv ] && ! [ -e $(READY) ]; then echo "The last set-up did not finish: starting it over."; rm -rf .venv; fi
	@rm -f $(READY)
	@echo "Setting up .venv: torch, transformers, JupyterLab and the rest (a few minutes, once)."
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(READY)

# Writes each notebook from its text twin, keeping cell ids, and runs it; commit both.
notebooks: setup
	@$(PY) tools/build_notebooks.py $(ARGS)

bench: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(PY) benchmarks/recipe_scores.py
	@$(PY) benchmarks/recipe_vs_sft.py
	@$(PY) benchmarks/which_modules.py
	@$(PY) benchmarks/cpu_dtype.py
	@$(PY) benchmarks/quiz_seconds.py
	@$(PY) benchmarks/planner_cpu.py
	@$(PY) benchmarks/sweep_overhead.py

clean:
	rm -rf .venv
