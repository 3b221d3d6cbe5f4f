"""The learner's own copies of the lessons, in `my-lessons/` beside `notebooks/`: handed out, updated, put back.

A copy is replaced only while it is, byte for byte, what was handed out: the course's lesson without the outputs of its
cells, which would answer the questions above them. JupyterLab shows this folder alone, so the course's files that a
lesson links to are copied into its `course/`. What is solved is in `progress_file`. Without a checkout the lessons come
out of the installed package, and `my-lessons/` is made where one stands. `lora-lab` calls this from a command line.
"""

import argparse
import hashlib
import json
import os
import sys
from importlib import util
from pathlib import Path

from .. import cache, files
from ..display import Page
from ..errors import LabError, reason
from . import index, lesson_files, progress_file, question_files
from .index import Entry

WORK = "my-lessons"
_COURSE = "course"  # in it, copies of what lessons link to
_KEPT = ".handed-out.json"  # for each file the SHA-256 that it was handed out with
_INDEX = "index.ipynb"
_NOTEBOOK = 50_000_000  # bytes of one with its pictures
_EMPTY = hashlib.sha256(b"").hexdigest()  # of a file of 0 bytes, as a full disk leaves it
_ENDS = (".ipynb", ".new.ipynb")  # of a lesson's copy, and of a newer version beside an edited one
_JUPYTER = ("jupyterlab", "ipywidgets", "anywidget", "markdown_it", "mdit_py_plugins")  # what `lab` adds to the tools
_LIVE = "from lora_lab.course import handout\n\nhandout.show()"


def course(root: Path | None = None) -> Path:
    """Return `root`, or the folder that has the course, or with an installed package is to have the learner's copies.

    That is this one, the one above, or where this package lies. Raises LabError.
    """
    if root is not None:
        return files.place(root, "the course's folder")
    here = Path.cwd()
    for folder in (here, here.parent, Path(__file__).resolve().parents[2]):
        if (folder / _first()).is_file():
            return folder
    if (lesson_files.PACKED / _first()).is_file():
        return here.parent if here.name == WORK and (here / _KEPT).is_file() else here
    raise LabError(f"No {_first()} is in {here}, and this package was built without the lessons. Go to the course.")


def _first() -> str:
    return f"notebooks/{question_files.lessons()[0].notebook}.ipynb"


def overview(root: Path | None = None) -> list[Entry]:
    """Return every lesson of the course in order, with its title and what is solved of it."""
    solved = {name for name, kept in progress_file.read().items() if kept.solved}
    asked = {lesson.notebook: [question.id for question in lesson.questions] for lesson in question_files.lessons()}
    entries = []
    for file in _lessons(course(root)):
        questions = asked.get(file.stem, [])
        entries.append(Entry(file.stem, _title(file), len(solved.intersection(questions)), len(questions)))
    return entries


def next_one(root: Path | None = None) -> str:
    """Return the name of the first lesson with something left to solve; "index" if all are finished."""
    left = [entry.name for entry in overview(root) if not entry.finished]
    return left[0] if left else "index"


def sync(root: Path | None = None) -> list[str]:
    """Hand out what is missing or newer; returns what the learner should know, a line each. Raises LabError.

    Never replaces a copy that was edited or run: the new version goes beside it, as `NAME.new.ipynb`. Each file is
    written whole or not at all and before it is noted down, so a sync that was killed goes on at the next.
    """
    root = course(root)
    work, lines = root / WORK, list[str]()
    try:
        work.mkdir(exist_ok=True)
        with files.lock(work / ".lock", timeout=20):
            known = _known(work, lines)
            for name in (_KEPT, _INDEX, *(f"{file.stem}{end}" for file in _lessons(root) for end in _ENDS)):
                files.remove_leftovers(work / name)
            for source in _lessons(root):
                try:
                    lines += _hand_out(work / source.name, _as_handed_out(source), known)
                    for name in lesson_files.linked(files.read_json(source, dict, _NOTEBOOK), source.parents[1]):
                        _hand_out_file(work, source.parents[1] / name, f"{_COURSE}/{name}", known)
                except ValueError as error:
                    lines.append(f"{source} is damaged ({error}), so your copy stays. Get the course's file again.")
                _note(work, known)
            _write_index(work, root, known)
            _note(work, known)
    except OSError as error:
        raise LabError(f"The lessons cannot be copied to {work}: {error}. Make the folder writable and run again; "
                       "nothing of yours was changed.") from None
    return lines


def put_back(name: str, root: Path | None = None) -> str:
    """Put lesson `name` back as the course has it now; an edited copy stays as NAME.mine-1.ipynb. Says what it did."""
    root = course(root)
    names = ", ".join(file.stem for file in _lessons(root))
    if (source := next((file for file in _lessons(root) if file.stem == name), None)) is None:
        raise LabError(f"There is no lesson {name!r}. There are: {names}.")
    copy, said = root / WORK / source.name, f"{name} is as handed out."
    try:
        with files.lock(copy.parent / ".lock", timeout=20):
            known, new = _known(copy.parent, []), _as_handed_out(source)
            version, offered = hashlib.sha256(new).hexdigest(), copy.with_name(f"{name}.new.ipynb")
            if copy.exists() and _sha(copy) not in (version, known.get(copy.name), _EMPTY):
                kept = files.free(copy, "mine")
                os.rename(copy, kept)  # killed here, the next sync hands out the missing lesson
                said += f" What you had is kept as {kept.name}."
            files.write(copy, new)
            if offered.exists() and _sha(offered) == version:  # the same again
                offered.unlink()
            known[copy.name] = version
            _note(copy.parent, known)
    except (OSError, ValueError) as error:
        raise LabError(f"{name} cannot be put back: {reason(error)}. What you had is still in {WORK}/. Make it "
                       "writable, or get the course's file again, and run again.") from None
    return said


def show() -> Page:
    """Show the lessons in order with links and your progress, as a page for a notebook in the learner's folder."""
    return index.page(overview())


def _lessons(root: Path) -> list[Path]:
    source = root if (root / _first()).is_file() or not lesson_files.PACKED.is_dir() else lesson_files.PACKED
    return sorted((source / "notebooks").glob("[0-9]*.ipynb"))


def _named(given: str, root: Path) -> str:
    """The lesson that is meant by its name, or by a beginning that no other has; else what was given."""
    given = given.removesuffix(".ipynb")
    found = [file.stem for file in _lessons(root) if file.stem.startswith(given)]
    return found[0] if len(found) == 1 else given


def _as_handed_out(source: Path) -> bytes:
    """The course's lesson as learners get it: no outputs, links within their folder. Raises ValueError."""
    try:
        content = lesson_files.bare(files.read_json(source, dict, _NOTEBOOK))
        linked = lesson_files.linked(content, source.parents[1])
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = lesson_files.LINK.sub(
                    lambda link: f"]({_COURSE}/{link[1]}" if link[1] in linked else link[0],
                    "".join(cell["source"])).splitlines(keepends=True)
    except (LookupError, TypeError, AttributeError):
        raise ValueError("it is no notebook") from None
    return lesson_files.written(content)


def _title(file: Path) -> str:
    try:
        source = files.read_json(file, dict, _NOTEBOOK)["cells"][0]["source"]
        return "".join(source).splitlines()[0].removeprefix("# ").strip()
    except (ValueError, LookupError, TypeError):
        return file.stem  # it is damaged, which `sync` says


def _known(work: Path, lines: list[str]) -> dict[str, str]:
    try:
        known = files.read_json(work / _KEPT, dict)
        if all(isinstance(value, str) for value in known.values()):
            return known
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    lines.append(f"{WORK}/{_KEPT} was damaged: every lesson that differs from the course's counts as edited by you.")
    return {}


def _note(work: Path, known: dict[str, str]) -> None:
    files.write(work / _KEPT, json.dumps(known, indent=1).encode())


def _hand_out(copy: Path, new: bytes, known: dict[str, str]) -> list[str]:
    """Put `new` at `copy`, or beside it where the learner has worked in it; notes it in `known`."""
    version, offered = hashlib.sha256(new).hexdigest(), f"{copy.stem}.new.ipynb"
    mine = _sha(copy) if copy.exists() else None
    if mine in (None, _EMPTY, version, known.get(copy.name)):  # nothing of the learner's
        if mine != version:
            files.write(copy, new)
        known[copy.name] = version
        said = {_EMPTY: ["was empty; it is handed out again."], None: [], version: []}.get(mine, ["updated."])
        return [f"{copy.name}: {words}" for words in said]
    if version not in (known.get(copy.name), known.get(offered)):
        beside = copy.with_name(offered)
        if beside.exists() and _sha(beside) not in (version, known.get(offered)):
            os.rename(beside, files.free(beside, "mine"))  # worked in as well
        files.write(beside, new)
        known[offered] = version
        return [f"{copy.name}: you have worked in it, so it stays. The course's new version is beside it: {offered}."]
    return []


def _hand_out_file(work: Path, source: Path, name: str, known: dict[str, str]) -> None:
    """Put a file that a lesson links to at `name` in `work`; one that the learner changed stays."""
    copy, new = work / name, source.read_bytes()
    copy.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(copy)
    if (mine := _sha(copy) if copy.exists() else None) in (None, _EMPTY, known.get(name)):
        known[name] = hashlib.sha256(new).hexdigest()
        if mine != known[name]:
            files.write(copy, new)


def _write_index(work: Path, root: Path, known: dict[str, str]) -> None:
    """Writes the index with today's progress in it, unless the learner changed a cell of it."""
    file, content = work / _INDEX, index.notebook(overview(root), _LIVE)
    if file.exists():
        try:
            mine = files.read_json(file, dict, _NOTEBOOK)
            if _of(index.sources(mine)) not in (known.get(_INDEX), _of(index.sources(content))):
                return
        except (ValueError, LookupError, TypeError, AttributeError):
            os.rename(file, files.free(file, "mine"))
    files.write(file, lesson_files.written(content))
    known[_INDEX] = _of(index.sources(content))


def _of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _start(root: Path, lesson: str | None, options: list[str], whole: bool) -> None:
    """JupyterLab in this process, on `lesson` (a name, or a path in the course), else on what comes next.

    It shows the learner's folder; the course's own where `whole` or the path asks for it.
    """
    if missing := [name for name in _JUPYTER if util.find_spec(name) is None]:
        raise LabError(f"Only the tools are installed here; lessons need {', '.join(missing)} too. "
                       'Install the course with `pip install "lora-lab[lab]"` (uv: `uv pip install "lora-lab[lab]"`) '
                       "and run this again.")
    for line in sync(root):
        print(line)
    where = f"{WORK}/{_named(lesson, root) if lesson else next_one(root)}.ipynb"
    if lesson and not (root / where).is_file():
        where = lesson
    if not (root / where).is_file():
        raise LabError(f"There is no lesson {lesson!r}. Name one such as {next(iter(_lessons(root))).stem}.")
    cache.model_folder()  # here, where its progress is seen, not in a kernel
    from jupyterlab.labapp import LabApp

    shown = root / WORK if where.startswith(f"{WORK}/") and not whole else root
    print(f"Opening {where} in JupyterLab. Stop it with Ctrl+C.", flush=True)
    # JupyterLab's defaults for this run, which ask nothing about news; what the learner has set counts more.
    paths = [os.environ.get("JUPYTER_CONFIG_PATH"), str(Path(__file__).with_name("jupyter"))]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, paths))
    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    first = f"--LabApp.default_url=/lab/tree/{(root / where).relative_to(shown).as_posix()}"
    LabApp.launch_instance([*as_root, f"--ServerApp.root_dir={shown}", first, *options])


def _reset(root: Path, names: list[str], sure: bool) -> None:
    asked, names = names, names or [file.stem for file in _lessons(root)]
    if not sure and not sys.stdin.isatty():
        raise LabError("Nothing was put back: there is no terminal to ask at. Say yes beforehand: "
                       f"`{' '.join(['lora-lab reset', *asked, '--yes'])}`, or with make "
                       "YES=1.")
    which = names[0] if len(names) == 1 else f"all {len(names)} lessons"
    question = f"Put {which} back as handed out? What you edited is kept beside it. [y/N] "
    if not sure and not _agreed(question):
        return print("Nothing was changed.")
    for name in names:
        print(put_back(_named(name, root), root))


def _progress(export: str | None) -> None:
    print(*[show(), *progress_file.notices], sep="\n")
    if export:
        print(f"\nCopied to {progress_file.export(export)}.")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl+D
        print()
        return False


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lora-lab", description="Your copies of the lessons.")
    parts = parser.add_subparsers(dest="do", required=True)
    done = parts.add_parser("progress", help="what is solved and what is left")
    done.add_argument("--export", metavar="FILE", help="copy your progress there, to keep or to hand in")
    parts.add_parser("sync", help=f"copy missing and updated lessons to {WORK}/; never over your work")
    start = parts.add_parser("open", usage="lora-lab open [LESSON] [--whole] [options of JupyterLab]",
                             help="sync, then JupyterLab on the first unfinished lesson; takes its options")
    start.add_argument("--lesson", help="open this one instead: its name, or how it begins, such as 02; a path such as "
                       "notebooks/... shows the whole course")
    start.add_argument("--whole", action="store_true", help="show the whole course's folder, for teachers")
    back = parts.add_parser("reset", help="put lessons back as handed out; keeps what you edited")
    back.add_argument("lesson", nargs="*", help="such as 01_low_rank_math; none means all")
    back.add_argument("--yes", action="store_true", help="without asking")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["open"] and words[1:] and not words[1].startswith("-"):
        words.insert(1, "--lesson")  # by its place: further on, it could be the value of an option of JupyterLab
    given, options = parser.parse_known_args(words)
    if options and given.do != "open":
        parser.error(f"unknown: {' '.join(options)}")
    try:
        root = course()
        if given.do == "progress":
            _progress(given.export)
        elif given.do == "sync":
            print("\n".join(sync(root)) or f"{WORK}/ is up to date.")
        elif given.do == "open":
            _start(root, given.lesson, options, given.whole)
        else:
            _reset(root, given.lesson, given.yes)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
