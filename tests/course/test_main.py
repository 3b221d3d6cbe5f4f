"""`lora-lab`: every part is there, takes what it is given, and says in a line what is wrong."""

import subprocess
import sys

import lora_lab
import pytest
from lora_lab import LabError
from lora_lab import __main__ as command

TOOLS_ALONE = """
import sys
for absent in ("IPython", "ipywidgets", "anywidget", "markdown_it", "mdit_py_plugins", "jupyterlab"):
    sys.modules[absent] = None
from lora_lab.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def without_jupyter(*arguments, cwd):
    return subprocess.run([sys.executable, "-c", TOOLS_ALONE, *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_names_every_part_and_an_unknown_one_is_answered_by_them(capsys):
    assert command.main([]) == 0
    said = capsys.readouterr().out
    unknown = command.main(["opne"])
    assert "'opne'" in unknown
    for part in command._PARTS:
        assert f"  {part} " in said and part in unknown


@pytest.mark.parametrize("part", sorted(command._PARTS.keys() - {"doctor"}))  # whose own tests load torch anyway
def test_every_part_has_help_of_its_own(part, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([part, "--help"])
    assert ended.value.code == 0 and "usage: lora" in capsys.readouterr().out


def test_a_part_gets_the_rest_and_its_status_is_the_commands(tmp_path, capsys):
    assert command.main(["data", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_a_fault_is_a_sentence_and_a_stop_is_no_traceback(monkeypatch):
    def run(error):
        monkeypatch.setattr(command.importlib, "import_module", lambda *_: type("Part", (), {"main": raises(error)}))
        return command.main(["class"])

    def raises(error):
        def main(_):
            raise error
        return staticmethod(main)

    assert run(LabError("What to do.")) == "What to do."
    assert "Interrupted" in run(KeyboardInterrupt())


def test_without_jupyters_packages_tools_work_and_lessons_say_what_to_install(tmp_path):
    done = without_jupyter("open", cwd=tmp_path)
    assert done.returncode == 1 and 'pip install "lora-lab[lab]"' in done.stderr and "Traceback" not in done.stderr
    assert "jupyterlab, ipywidgets" in done.stderr
    (tmp_path / "rows.csv").write_text("question,answer\nWhat is it?,a row\nAnd this?,another\n")
    assert "What is it?" in without_jupyter("data", "rows.csv", cwd=tmp_path).stdout
    assert "0 of" in without_jupyter("progress", cwd=tmp_path).stdout


def test_a_name_of_the_course_says_what_to_install_where_it_is_missing(monkeypatch):
    def absent(name, package):
        raise ModuleNotFoundError(f"No module named 'ipywidgets' for {name}", name="ipywidgets")

    monkeypatch.setattr(lora_lab.importlib, "import_module", absent)
    with pytest.raises(LabError, match=r"quiz is of the course, and ipywidgets is missing.*lora-lab\[lab\]"):
        lora_lab.quiz
    with pytest.raises(ModuleNotFoundError):
        lora_lab.load_base
