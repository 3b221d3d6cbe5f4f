# Two commands: `make lab` to learn, `make test` to check. Both set up everything they need first.
PYTHON ?= python3
# Sets up what its first argument names (see tools/set_up.py), then runs the rest with the environment's Python.
SET_UP  = $(PYTHON) tools/set_up.py

.PHONY: help lab reset class exports release wheel lock sbom audit test lesson check setup notebooks picture perturb publish site bench drift clean

help:
	@echo "make lab        set up, then open JupyterLab on your first unfinished lesson  (LESSON=01_low_rank_math, ARGS=--no-browser)"
	@echo "make reset      put a lesson back as handed out; asks first, keeps what you edited  (LESSON=01_low_rank_math)"
	@echo "make test       set up, then run every test                        (ARGS='-k name': options for pytest)"
	@echo "make check      set up, then the quick tests, to run between two edits"
	@echo "make lesson     set up, then run one lesson from its first cell to its last  (LESSON=00_first_adapter)"
	@echo "make setup      only set up what learners need: virtual environment, packages, model"
	@echo "make notebooks  write the lessons from their text twins and run them  (ARGS=01_low_rank_math: only that one)"
	@echo "make picture    README's moving picture, drawn from Lesson 0 as it was executed; nothing is trained"
	@echo "make perturb    run lessons with another seed, precision and half the steps, to read  (ARGS='00 --only seed')"
	@echo "make publish    write where the course is published into notebooks and README  (REPO=owner/name, or REPO= for nowhere)"
	@echo "make bench      measure the lesson's recipe: scores by seed, and speed beside trl's SFTTrainer"
	@echo "make drift      which lessons break under newer, older and Colab's packages  (ARGS='00 01 --in newest')"
	@echo "make class      learners' exported progress as one table  (FILES='handed-in/*.json' OUT=class.csv)"
	@echo "make exports    each lesson as nbgrader and otter-grader take it, solutions in it, in dist/classroom"
	@echo "make release    a zip for learners and one for teachers, in dist/"
	@echo "make wheel      what pip and uv install, the lessons in it, in dist/"
	@echo "make lock       the hashes of every package that an extra installs, into locked.txt"
	@echo "make sbom       what is installed, as a bill of materials (CycloneDX), in dist/"
	@echo "make audit      which packages of locked.txt have known vulnerabilities; asks the package index"
	@echo "make site       the executed course as a website, in _build/html, its links and its scripts' weight checked"
	@echo "make clean      remove the virtual environment that was set up, and the site; the model and your files stay"

# Lessons are worked on in my-lessons/, so that an update of the course never meets a learner's edits.
lab:
	@$(SET_UP) lab -m lora_lab open $(if $(LESSON),--lesson '$(LESSON)') $(ARGS)

reset:
	@$(SET_UP) lab -m lora_lab reset $(LESSON) $(if $(YES),--yes)

class:
	@$(SET_UP) lab -m lora_lab class $(FILES) $(if $(OUT),--out '$(OUT)')

exports:
	@$(SET_UP) test tools/class_exports.py

release:
	@$(SET_UP) lab tools/release.py

wheel:
	@rm -rf build  # what an earlier build left would come along
	@$(SET_UP) test -m uv build --wheel --quiet --out-dir dist

lock:
	@$(SET_UP) test tools/lock.py

# Tools that run by themselves, in environments that uv keeps: nothing of theirs is installed beside the course.
sbom:
	@mkdir -p dist
	@$(SET_UP) test -m uv tool run --quiet --from cyclonedx-bom cyclonedx-py environment --output-file dist/sbom.json $(or $(wildcard .venv-lora-lab),.venv)

audit:
	@$(SET_UP) test -m uv tool run --quiet pip-audit --strict --disable-pip --require-hashes --requirement locked.txt

# Three processes for two cores: those of pages and of lessons often wait.
test:
	@$(SET_UP) test tools/get_browser.py
	@$(SET_UP) test -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

lesson:
	@$(SET_UP) test -m pytest -q -n 0 tests/lessons/test_notebooks.py -k "$(LESSON) and notebook_runs"

# Style, types, and what is quick and close to most edits; tests/conftest.py names what is slow.
check:
	@$(SET_UP) test -m ruff check lora_lab tests tools benchmarks
	@$(SET_UP) test -m mypy
	@$(SET_UP) test -m pytest -q -m "not slow" $(ARGS)

setup:
	@$(SET_UP) lab

# Writes each notebook from its text twin, keeping cell ids, and runs it; commit both.
notebooks:
	@$(SET_UP) test tools/build_notebooks.py $(ARGS)
	@$(SET_UP) test tools/readme_picture.py
	@$(SET_UP) test tools/lesson_plan.py

# Where it shows Lesson 0 as it stands, nothing is drawn.
picture:
	@$(SET_UP) test tools/get_browser.py
	@$(SET_UP) test tools/readme_picture.py

# Executed copies on other terms, and the same as text, in _build/perturb.
perturb:
	@$(SET_UP) test tools/perturb.py $(ARGS)

# The set-up cells and links of every notebook, and the README's links.
publish:
	@$(SET_UP) test tools/publish.py $(if $(filter undefined,$(origin REPO)),,"$$REPO")

bench:
	@$(SET_UP) test,bench benchmarks/recipe_scores.py
	@$(SET_UP) test,bench benchmarks/recipe_vs_sft.py
	@$(SET_UP) test,bench benchmarks/which_modules.py
	@$(SET_UP) test,bench benchmarks/cpu_dtype.py
	@$(SET_UP) test,bench benchmarks/quiz_seconds.py
	@$(SET_UP) test,bench benchmarks/planner_cpu.py
	@$(SET_UP) test,bench benchmarks/published_peaks.py
	@$(SET_UP) test,bench benchmarks/sweep_overhead.py
	@$(SET_UP) test,bench benchmarks/fuzz_files.py
	@$(SET_UP) test,bench benchmarks/fuzz_public.py
	@$(SET_UP) test,bench benchmarks/targets_fuzz.py
	@$(SET_UP) test,bench benchmarks/sweep_fuzz.py
	@$(SET_UP) test,bench benchmarks/merge_latency.py
	@$(SET_UP) test,bench benchmarks/audit_cases.py --seeds 0 1 --sample 600
	@$(SET_UP) test,bench benchmarks/doctor_cases.py
	@$(SET_UP) test,bench benchmarks/busy_cores.py
	@$(SET_UP) test,bench benchmarks/engines.py

drift:
	@$(SET_UP) test tools/drift.py $(ARGS)

# A warning is an error: most are a link that leads nowhere. Without -E a moved page could stay in an old menu.
site:
	@rm -rf _build/html build
	@$(SET_UP) test,site -m sphinx -E -W --keep-going --quiet -b html -c docs -d _build/doctrees . _build/html
	@$(SET_UP) test,site -m uv build --wheel --quiet --out-dir _build/html
	@$(SET_UP) test,site tools/check_links.py _build/html
	@echo "Open _build/html/index.html."

clean:
	@$(SET_UP) clean
	rm -rf _build
