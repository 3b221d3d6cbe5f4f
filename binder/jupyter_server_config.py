"""JupyterLab shows the learner's folder, as with `make lab`; all of a home that has none, as on a hub at first."""

from pathlib import Path

if (lessons := Path.home() / "my-lessons").is_dir():
    c.ServerApp.root_dir = str(lessons)  # noqa: F821 (Jupyter defines c)
