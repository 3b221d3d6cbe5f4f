"""Set the course up: `python tools/set_up.py [lab|test|bench|site] [what the environment's Python is to run then ...]`.

Makes a virtual environment, installs into it what learners need (`lab`) or more (`test`, `bench`, `site`; `test,bench`
for several), and fetches the model. What is there is not done again. `python tools/set_up.py clean` removes it.
uv does it where it is there, else pip; both take the files whose SHA-256 is in locked.txt, and torch by its version.

Any Python 3.6 or newer can read this file, to be told what is missing; nothing but its standard library is used.
"""

import ast
import atexit
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".venv", ".venv-lora-lab")  # the second where the first is somebody else's
MARK = ".lora-lab"  # in a folder of ours: empty until all is installed, then what it was installed from
EXTRAS = ("lab", "test", "bench", "site")
PYTORCH = "https://download.pytorch.org/whl/"
HASHED = ("--no-deps", "--require-hashes", "-r")  # of pip and uv: these very files, or none
CUDA = "cu130"  # of the same CUDA as the wheels of torch for Linux; a test compares
WINDOWS = sys.platform == "win32"


def unfit():
    """Why the course cannot run with this Python or on this machine; empty if it can."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest, beyond = map(int, re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', text, re.M).groups())
    here = "{}.{}.{}".format(*sys.version_info)
    if not (3, lowest) <= sys.version_info < (3, beyond):
        return (f"lora-lab needs Python 3.{lowest} to 3.{beyond - 1}; {sys.executable} is {here}. Name another: "
                f"make lab PYTHON=/path/to/python3.{lowest}, or on Windows: py -3.{lowest} tools\\set_up.py")
    if sys.maxsize < 2**32:
        return f"lora-lab needs a 64-bit Python, because torch does; {sys.executable} has 32 bits. Install the other."
    if WINDOWS and platform.machine() != "AMD64":
        return f"There is no torch for Windows on {platform.machine()}. Install a Python for x86-64, which runs too."
    if sys.platform == "linux" and (platform.libc_ver()[0] != "glibc" or _numbers(platform.libc_ver()[1]) < (2, 28)):
        found = " ".join(platform.libc_ver()) or "another C library"
        return f"torch needs glibc 2.28 or newer, this is {found}. Use a newer system or a container."
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return ("There is no torch for Intel Macs, nor for an Intel Python on Apple silicon. With Apple silicon, "
                "install a Python for it; on an Intel Mac, read the lessons on the web or run them elsewhere.")
    if sys.platform == "darwin" and _numbers(platform.mac_ver()[0]) < (14,):
        return f"There is no torch for macOS {platform.mac_ver()[0]}: it needs macOS 14 or newer. Update macOS."
    return ""


def _numbers(version):
    return tuple(map(int, re.findall(r"\d+", version)))


def fingerprint():
    """Of what the packages are installed from. The published address in pyproject.toml is none of it."""
    project = re.sub(r"(?m)^repository = .*\n", "", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "locked.txt"))
    return hashlib.sha256(f"{ROOT}\n{project}{pins}".encode()).hexdigest()[:16]


def ours(folder):
    return (folder / MARK).exists() or (folder / ".ready").exists()  # the second is of earlier set-ups


def place():
    """The environment's folder: the one that we made, else the first free one. A folder of others' is not touched."""
    folders = [ROOT / name for name in FOLDERS]
    free = [f for f in folders if not os.path.lexists(str(f)) or f.is_dir() and not any(f.iterdir())]
    found = [*filter(ours, folders), *free]
    if not found:
        sys.exit(f"{' and '.join(FOLDERS)} in {ROOT} were not made by this set-up. Rename one of them and run again.")
    return found[0]


def python_of(folder):
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def installed(folder):
    """What our environment was installed from, and with which extras; empty while unfinished, or if it cannot start."""
    if not ours(folder):
        return {}
    try:
        text = (folder / MARK).read_text(encoding="utf-8") if (folder / MARK).exists() else '{"extras": ["test"]}'
        found = json.loads(text)
        return found if subprocess.call([str(python_of(folder)), "-c", ""], stderr=subprocess.DEVNULL) == 0 else {}
    except (OSError, ValueError):
        return {}


def ready(folder, extras):
    found = installed(folder)
    return found.get("of") == fingerprint() and set(extras) <= set(found["extras"])


@contextlib.contextmanager
def locked():
    """One set-up at a time. The system lets go of the lock when this process and the pip that it started are gone."""
    with (ROOT / ".set-up.lock").open("a") as file:
        os.set_inheritable(file.fileno(), True)
        told = False
        while not _try_lock(file):
            if not told:
                print("Another set-up is at work in this folder; waiting for it.", flush=True)
            told = True
            time.sleep(0.3)
        try:
            yield
        finally:
            _unlock(file)


if WINDOWS:
    import msvcrt

    def _try_lock(file):
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        except OSError:
            return False

    def _unlock(file):
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try_lock(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def _unlock(file):
        fcntl.flock(file, fcntl.LOCK_UN)


def find_uv():
    return shutil.which("uv")


def places():
    """Where pip looks for packages by the user's own settings, as options for uv, which does not read them."""
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    words = []
    for line in pip.stdout.decode("utf-8", "replace").splitlines():
        option, _, value = line.partition(".")[2].partition("=")
        if option in ("index-url", "extra-index-url", "find-links"):
            words += [word for place in ast.literal_eval(value).split() for word in ("--" + option, place)]
    return words


def hashed(extras):
    """The part of locked.txt that these extras need: pinned files with their SHA-256, for every system."""
    blocks = (ROOT / "locked.txt").read_text(encoding="utf-8").split("# for ")[1:]
    parts = (block.partition("\n") for block in blocks)
    return "".join(lines for names, _, lines in parts if set(names.split()) & set(extras))


def has_gpu():
    """Whether there is an NVIDIA GPU with a driver that answers. Asked before torch is there."""
    if Path("/proc/driver/nvidia/gpus").is_dir():
        return True
    try:
        done = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
        return done.returncode == 0 and b"GPU" in done.stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def build_wanted():
    """The build of torch for this machine at PyTorch's index; empty where the usual wheel is the right one."""
    gpu = has_gpu()
    return "" if sys.platform == "darwin" or gpu and not WINDOWS else CUDA if gpu else "cpu"


def torch_index():
    """PyTorch's index with the build of torch for this machine; empty where the user's own pip settings have it."""
    build = build_wanted()
    if not build:
        return ""
    pin = re.search(r"(?m)^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8")).group(1)
    if has_build(f"{PYTORCH}{build}/torch/", pin, build):
        return PYTORCH + build
    print(f"PyTorch's index does not answer: torch comes by your pip settings, in whatever build they have. ({build} "
          "would fit this machine.)", flush=True)
    return ""


def has_build(page, version, build, seconds=5):
    """Whether the index `page` lists this build of torch, asked once."""
    found = []

    def ask():
        with contextlib.suppress(Exception):  # whatever it is, the index does not answer
            text = urlopen(page, timeout=seconds).read().decode("utf-8", "replace")
            found.append(re.search(rf"torch-{re.escape(version)}(\+|%2B){build}-", text) is not None)

    asking = threading.Thread(target=ask, daemon=True)  # urlopen alone may wait longer, for the name
    asking.start()
    asking.join(seconds)
    return found == [True]


def call(*command):
    """Run one step; where it fails, this is the end. It holds the lock too: killed, pip may outlive this process."""
    code = subprocess.call(list(map(str, command)), cwd=str(ROOT), close_fds=False)
    if code:
        sys.exit(f"The set-up is not finished: `{' '.join(map(str, command[1:4]))}` failed, as said above. "
                 "Run it again to go on.")


def install(folder, extras):
    """Make the environment, or bring it up to date. The mark comes last: an update that fails keeps the old one."""
    before, uv = installed(folder), find_uv()
    if not before:
        if find_spec("ensurepip") is None and not uv:
            sys.exit(f"{sys.executable} cannot make environments: its module ensurepip is missing. On Debian and "
                     f"Ubuntu: apt install python3.{sys.version_info[1]}-venv. Then run again.")
        if ours(folder):
            print("The last set-up did not finish, or its Python is gone: starting it over.")
            empty(folder)
        elif folder.name != FOLDERS[0]:
            print(f"{FOLDERS[0]} was not made by this set-up and stays as it is: the course goes to {folder.name}.")
        folder.mkdir(exist_ok=True)
        (folder / MARK).write_text("", encoding="utf-8")
        print(f"Setting up {folder.name}: torch, transformers, JupyterLab and the rest (a few minutes, once).",
              flush=True)
        if not uv or subprocess.call([uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable,
                                      str(folder)], close_fds=False):
            call(sys.executable, "-m", "venv", folder)
    else:
        print(f"Bringing {folder.name} up to date: other packages are asked for than those that it was set up with.",
              flush=True)
    extras = sorted({*extras, *before.get("extras", ())})
    (folder / "locked.txt").write_text(hashed(extras), encoding="utf-8")
    index = torch_index()
    # 2.13.0+cpu counts as newer than the 2.13.0 of other indexes. By itself: the rest is from the other indexes alone.
    steps = ((*HASHED, folder / "locked.txt"),
             ("-c", "constraints.txt", "torch", *(("--extra-index-url", index) if index else ())),
             ("--no-deps", "--no-build-isolation", "-e", f".[{','.join(extras)}]"))
    python = str(python_of(folder))
    by_uv = uv and [uv, "pip", "install", "--python", python, "--index-strategy", "unsafe-best-match", *places()]
    kept = ["--offline", *(["--extra-index-url", PYTORCH + build_wanted()] if build_wanted() else [])]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    beside = None
    with_pip = None if by_uv else background(*pip, "--quiet", "--no-deps", *steps[1])  # pip unpacks on one core
    for step in steps:
        if with_pip and step is steps[1]:
            with_pip.wait()  # what has failed there is tried again below, and says why
        if by_uv and all(subprocess.call([*by_uv, *offline, *map(str, step)], cwd=str(ROOT), close_fds=False)
                         for offline in ([], kept)):  # without a network, from what uv keeps of earlier times
            print("uv did not get through; going on with pip.", flush=True)
            by_uv = None
        if not by_uv:
            call(*pip, *step)
        beside = beside or background(python, "-m", "lora_lab.cache")  # `main` waits for it, or says what failed
    new = folder / (MARK + ".new")
    new.write_text(json.dumps({"of": fingerprint(), "extras": extras}), encoding="utf-8")
    os.replace(str(new), str(folder / MARK))


def background(*command):
    """Start what others need not wait for, quietly."""
    process = subprocess.Popen(list(map(str, command)), cwd=str(ROOT), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False)
    atexit.register(process.kill)
    return process


def empty(folder):
    """Delete what is in our folder, the mark last, so that a deletion which is interrupted leaves it ours."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MARK):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(str(entry))
        elif entry.name != MARK:
            entry.unlink()


def clean():
    with locked():
        for folder in filter(ours, (ROOT / name for name in FOLDERS)):
            empty(folder)
            (folder / MARK).unlink()
            folder.rmdir()


def main(arguments):
    if arguments == ["clean"]:
        return clean()
    extras, then = (arguments[0].split(",") if arguments else ["lab"]), arguments[1:]
    if not set(extras) <= set(EXTRAS):
        sys.exit(f"There is nothing to set up for {arguments[0]!r}. Expected one or more of {', '.join(EXTRAS)}.")
    reason = unfit()
    if reason:
        sys.exit(reason)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # set in containers: each kernel would compile torch anew
    folder = place()
    if not ready(folder, extras):
        with locked():
            folder = place()
            if not ready(folder, extras):  # another may have finished while this one waited
                install(folder, extras)
    python = str(python_of(folder))
    call(python, "-m", "lora_lab.cache")
    if then and WINDOWS:
        sys.exit(subprocess.call([python, *then]))
    if then:
        os.execv(python, [python, *then])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run it again to go on.")
    except OSError as error:
        sys.exit(f"The set-up is not finished: {error}. {ROOT} must be writable, with about 3 GB free. Run it again.")
