"""The plan of the package: what may import what, how much stands in one place, and that all of it has a test."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lora_lab"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}
TOOLS = [name for name in MODULES if not name.startswith("lora_lab.course") and not name.endswith("__main__")]


def imports(name, everywhere=True):
    """The modules of the package that one imports, inside of functions too; a package it lies in is not counted."""
    file = MODULES[name]
    here = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            up = here.split(".")[: len(here.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                found.add(f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {other for other in found if other in MODULES and not f"{name}.".startswith(f"{other}.")}


def test_no_tool_imports_the_course():
    wrong = {name: [other for other in imports(name) if other.startswith("lora_lab.course")] for name in TOOLS}
    assert not {name: found for name, found in wrong.items() if found}


def test_no_import_goes_in_a_circle():
    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name not in done:
            for other in imports(name):
                visit(other, [*path, name])
            done.add(name)

    done = set()
    for name in MODULES:
        visit(name, [])


def test_few_doors_and_no_large_room():
    doors = [entry.name for entry in PACKAGE.iterdir() if not entry.name.startswith("_") and entry.name != "py.typed"]
    assert len(doors) <= 22, sorted(doors)
    assert not {str(file): lines for file in FILES if (lines := len(file.read_text().splitlines())) > 330}


def test_no_tool_but_plots_needs_what_draws_and_none_the_course():
    code = """
import importlib, sys
for absent in ("matplotlib", "IPython", "ipywidgets", "markdown_it", "lora_lab.course"):
    sys.modules[absent] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    tools = [name for name in TOOLS if not name.startswith("lora_lab.plots")]
    done = subprocess.run([sys.executable, "-c", code, *tools], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_each_module_has_a_test_of_its_name_or_its_folders():
    tests = {file.stem.removeprefix("test_") for file in (ROOT / "tests").rglob("test_*.py")}
    untested = []
    for name, file in MODULES.items():
        parts = name.removeprefix("lora_lab").strip(".").split(".")
        own = {parts[-1].strip("_")} | ({parts[-2]} if len(parts) > 1 and parts[-2] != "course" else set())
        if parts != [""] and parts != ["course"] and not own & tests:
            untested.append(name)
    assert not untested


def public(body):
    return [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]


def test_public_functions_and_classes_have_docstrings():
    missing = []
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text())
        missing += [name] * (not ast.get_docstring(tree))
        missing += [f"{name}.{node.name}" for node in public(tree.body)
                    if not ast.get_docstring(node) and node.name != "main"]
    assert not missing


def test_no_module_reaches_into_anothers_private_names():
    wrong = []
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text())
        known = {alias.asname or alias.name for node in ast.walk(tree)
                 if isinstance(node, ast.ImportFrom) and node.level
                 for alias in node.names}
        wrong += [f"{name}: {node.value.id}.{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                  and isinstance(node.value, ast.Name) and node.value.id in known
                  and node.attr.startswith("_") and not node.attr.startswith("__")]
    assert not wrong


def test_the_tools_page_tells_what_a_folder_takes_from_its_files():
    """Sphinx looks no further than a module's own functions, unless they are named."""
    untold, page = [], (ROOT / "docs/tools.md").read_text()
    for module, named in re.findall(r"automodule:: (lora_lab\.\w+)\n +:members:(.*)", page):
        body = ast.parse(MODULES[module].read_text()).body
        if not public(body):
            untold += [f"{module}.{alias.name}" for node in body if isinstance(node, ast.ImportFrom) and node.level == 1
                       for alias in node.names if alias.name not in named.replace(",", " ").split()]
    assert untold == ["lora_lab.memory.OPTIMIZERS"], "all but a constant"


@pytest.mark.parametrize("folder", ["tools", "benchmarks"])
def test_every_script_finds_what_it_imports(folder):
    """Each by itself, as `python tools/drift.py` is called; what one puts on the path does not help the next."""
    tell = """if True:
        import importlib, pathlib, sys
        folder = pathlib.Path(sys.argv[1])
        path = [str(folder), *sys.path[1:]]
        for file in sorted(folder.glob("*.py")):
            sys.path[:] = path
            for name, module in list(sys.modules.items()):
                if pathlib.Path(getattr(module, "__file__", None) or "/").parent.parent == folder.parent:
                    del sys.modules[name]
            importlib.import_module(file.stem)
            print(file.stem)"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", tell, ROOT / folder]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(list((ROOT / folder).glob("*.py")))
