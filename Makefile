# Two commands: `make lab` to learn, `make test` to check. Both set up everything they need first.
PYTHON ?= python3
PY     := .venv/bin/python
READY  := .venv/.ready
# What the packages are installed from; the published address in pyproject.toml is none of it.
NEEDS  = $$(grep -v '^repository = ' pyproject.toml | cat - constraints.txt | cksum)

.PHONY: help lab reset class release test setup install notebooks publish site bench drift clean

help:
	@echo "make lab        set up, then open JupyterLab on your first unfinished lesson  (LESSON=01_low_rank_math, ARGS=--no-browser)"
	@echo "make reset      put a lesson back as handed out; asks first, keeps what you edited  (LESSON=01_low_rank_math)"
	@echo "make test       set up, then run every test                        (ARGS='-k name': options for pytest)"
	@echo "make setup      only set up: virtual environment, packages, model"
	@echo "make notebooks  write the lessons from their text twins and run them  (ARGS=01_low_rank_math: only that one)"
	@echo "make publish    write where the course is published into notebooks and README  (REPO=owner/name, or REPO= for nowhere)"
	@echo "make bench      measure the lesson's recipe: scores by seed, and speed beside trl's SFTTrainer"
	@echo "make drift      which lessons break under newer, older and Colab's packages  (ARGS='00 01 --in newest')"
	@echo "make class      learners' exported progress as one table  (FILES='handed-in/*.json' OUT=class.csv)"
	@echo "make release    a zip for learners and one for teachers, in dist/"
	@echo "make site       the executed course as a website, in _build/html, with its links checked"
	@echo "make clean      remove the virtual environment and the site; the model and your files stay"

# Lessons are worked on in my-lessons/, so that an update of the course never meets a learner's edits.
lab: setup
	@$(PY) -m lora_lab.lessons open $(if $(LESSON),--lesson '$(LESSON)') $(ARGS)

reset: setup
	@$(PY) -m lora_lab.lessons reset $(LESSON) $(if $(YES),--yes)

class: setup
	@$(PY) -m lora_lab.classroom $(FILES) $(if $(OUT),--out '$(OUT)')

release: setup
	@$(PY) tools/release.py

test: setup
	@$(PY) tools/get_browser.py
	@$(PY) -m pytest $(ARGS)

# The stamp is written last: without one, the first set-up was interrupted and is started over. An update that fails,
# as without a network, leaves the old stamp, and is tried again.
setup:
	@if ! $(PY) -c "" 2>/dev/null || [ "$$(cat $(READY) 2>/dev/null)" != "$(NEEDS)" ]; \
	then $(MAKE) --no-print-directory install; fi
	@$(PY) -m lora_lab.cache

install:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	{ echo "lora-lab needs Python 3.11 or newer as '$(PYTHON)'. Name one: make lab PYTHON=/path/to/python3.12"; exit 1; }
	@if [ -e .venv ] && ! [ -e $(READY) ]; then echo "The last set-up did not finish: starting it over."; rm -rf .venv; fi
	@echo "Setting up .venv: torch, transformers, JupyterLab and the rest (a few minutes, once)."
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@echo "$(NEEDS)" > $(READY)

# Writes each notebook from its text twin, keeping cell ids, and runs it; commit both.
notebooks: setup
	@$(PY) tools/build_notebooks.py $(ARGS)

# The set-up cells and links of every notebook, and the README's links.
publish: setup
	@$(PY) tools/publish.py $(if $(filter undefined,$(origin REPO)),,"$$REPO")

bench: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(PY) benchmarks/recipe_scores.py
	@$(PY) benchmarks/recipe_vs_sft.py
	@$(PY) benchmarks/which_modules.py
	@$(PY) benchmarks/cpu_dtype.py
	@$(PY) benchmarks/quiz_seconds.py
	@$(PY) benchmarks/planner_cpu.py
	@$(PY) benchmarks/sweep_overhead.py
	@$(PY) benchmarks/merge_latency.py

drift: setup
	@$(PY) tools/drift.py $(ARGS)

# A warning is an error: most are a link that leads nowhere. Without -E a moved page could stay in an old menu.
site: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@rm -rf _build/html
	@$(PY) -m sphinx -E -W --keep-going --quiet -b html -c docs -d _build/doctrees . _build/html
	@$(PY) tools/check_links.py _build/html
	@echo "Open _build/html/index.html."

clean:
	rm -rf .venv _build
