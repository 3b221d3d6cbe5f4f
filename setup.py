"""All is in pyproject.toml but one step: a wheel takes the lessons along, which lie outside of the package."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from lora_lab.course import lesson_files  # noqa: E402


class BuildWithLessons(build_py):
    """An editable install needs no copy: it finds notebooks/ in the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, lesson_files.PACKED.relative_to(ROOT))
            if not lesson_files.pack(ROOT, target):
                print("warning: there is no notebooks/ here: this wheel has the tools and no lessons", file=sys.stderr)


setup(cmdclass={"build_py": BuildWithLessons})
