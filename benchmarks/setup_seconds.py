"""How long the set-up takes from nothing, with uv and with pip: environment, packages, model.

    python benchmarks/setup_seconds.py [uv] [pip]

Each in a clone of the last commit, with an empty folder for the model and empty caches of uv and pip; then once more,
when all is there. The model alone is built anew in the environment of the first, in an empty folder too.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
UV = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def seconds(*command: str | Path, **options) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, **options)
    return round(time.monotonic() - started, 1)


def measure(by: str, work: Path) -> dict:
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, work / "course"], check=True)
    programs = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "uv").exists()]
    if by == "uv":
        (work / "bin").mkdir()
        (work / "bin/uv").symlink_to(UV)
        programs.insert(0, str(work / "bin"))
    env = os.environ | {"PATH": os.pathsep.join(programs), "LORA_LAB_CACHE": str(work / "model"),
                        "UV_CACHE_DIR": str(work / "uv"), "PIP_NO_CACHE_DIR": "1", "PYTHONPATH": ""}
    options = {"cwd": work / "course", "env": env}
    command = [sys._base_executable, "tools/set_up.py", "lab"]
    found = {"load_before": round(os.getloadavg()[0], 1), "from_nothing_s": seconds(*command, **options),
             "load_after": round(os.getloadavg()[0], 1), "again_s": seconds(*command, **options)}
    env["LORA_LAB_CACHE"] = str(work / "second-model")
    python = work / "course/.venv/bin/python"
    return found | {"model_alone_s": seconds(python, "-m", "lora_lab.cache", **options)}


def main() -> None:
    file = REPOSITORY / "benchmarks/results/setup_seconds.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for by in sys.argv[1:] or ["uv", "pip"]:
        with tempfile.TemporaryDirectory(prefix="setup-seconds-") as work:
            results[by] = {"date": date.today().isoformat(), "python": platform.python_version(),
                           "cpus": os.cpu_count(), **measure(by, Path(work))}
        print(by, results[by], flush=True)
        file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
