"""What tells a stored run from all others: its settings, and a digest of all that the functions of a sweep use.

Functions of notebooks, scripts and single modules are followed by value: code, defaults, closures, bound objects, and
the globals that the code names, helpers among them. Packages count by name and version, or, where they are edited in
place, by their source. What cannot be read is refused, with the remedy.
"""

import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import site
import sys
import sysconfig
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LabError, reason

VERSIONS = ("torch", "transformers", "peft", "tokenizers", "accelerate", "bitsandbytes", "numpy")
INSTALLED = tuple({*site.getsitepackages(), site.getusersitepackages(), *(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))})
LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
STORES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR", "DELETE_ATTR")
CHANGES = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popleft", "popitem",
           "clear", "remove", "discard", "write", "writelines", "put"}
CACHED = type(functools.cache(int))
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
NO_CODE = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def digest(*functions: Callable | None) -> str:
    """Return what differs whenever a result of `functions` can: a digest of them, and of the libraries' versions.

    Raises LabError for what cannot be read, or what makes a result depend on the runs before.
    """
    reader = _Reader()
    parts = [platform.python_version(), *(_version(name) for name in VERSIONS)]
    for function in functions:
        try:
            parts.append(reader.of(function, getattr(function, "__name__", "run")))
        except RecursionError:
            raise LabError("The store cannot tell these runs from others: what they use is nested too deeply. Make it "
                           "inside the function, or sweep without a store.") from None
    return _digest(*parts)


def key(base: str, job: dict) -> str:
    """Return the name of a run's file: of its settings and seed, and of the `digest` of its functions."""
    return _digest(base, json.dumps(sorted(job.items())))[:24]


def _digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        whole.update(b"%d:" % len(part) + part)  # with its length, so that no two lists of parts read the same
    return whole.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _Reader:
    """Reads values as digests, each object once."""

    def __init__(self):
        self.found: dict[int, str] = {}
        self.kept: list = []  # an object that is gone could leave its id to another
        self.libraries: dict[str, list[str]] = {}
        self.sources: dict[str, types.CodeType | None] = {}

    def of(self, value: Any, where: str) -> str:
        if type(value) in PLAIN:
            return _digest(type(value).__name__, f"{value:x}" if type(value) is int else repr(value))
        if id(value) not in self.found:
            self.found[id(value)] = "itself"  # what refers back to it while it is being read
            self.kept.append(value)
            self.found[id(value)] = _digest(type(value).__qualname__, *self.parts(value, where))
        return self.found[id(value)]

    def parts(self, value: Any, where: str) -> Iterator[str | bytes]:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if isinstance(value, types.ModuleType):
            yield from self.imported(value.__name__, where)
        elif isinstance(value, types.FunctionType):
            yield from self.function(value, where)
        elif isinstance(value, type):
            yield from self.kind(value, where)
        elif isinstance(value, types.CodeType):
            yield from self.code(value, where)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(self.of(item, where) for item in value)
        elif type(value) in (list, tuple) or isinstance(value, tuple):
            yield from (self.of(item, where) for item in value)
        elif type(value) is dict:
            yield from (self.of(item, where) for pair in value.items() for item in pair)
        elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
            yield self.of(value.__func__, where)
            yield self.of(getattr(value, "__self__", None), where)
        elif isinstance(value, property):
            yield from (self.of(part, where) for part in (value.fget, value.fset, value.fdel))
        elif isinstance(value, CACHED):
            yield self.of(value.__wrapped__, where)  # functools.cache keeps results, and changes none
        elif torch and isinstance(value, torch.nn.Module):
            yield from self.network(value, where, vars(torch.nn.Module()))
        elif torch and isinstance(value, torch.Tensor) and value.layout is torch.strided:
            yield f"{value.dtype} {tuple(value.shape)} {value.requires_grad}"
            if value.device.type != "meta":
                yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        elif numpy and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            yield f"{value.dtype.str} {value.shape}"
            yield value.tobytes()
        elif hasattr(value, "backend_tokenizer"):
            rules = json.loads(value.backend_tokenizer.to_str())
            yield json.dumps(rules | {"padding": None, "truncation": None})  # every call sets these two anew
            yield repr((value.special_tokens_map, value.padding_side, value.truncation_side, value.chat_template))
        else:
            yield from self.thing(value, where)

    def function(self, value: types.FunctionType, where: str) -> Iterator[str | bytes]:
        library = self.module(value.__globals__.get("__name__", ""))
        yield from library
        if library and self.module(value.__module__ or "") and _found_at(value):
            yield from (value.__module__, value.__qualname__)
            return
        yield from self.code(value.__code__, where)
        yield self.of((value.__defaults__, value.__kwdefaults__), f"a default of {where}")
        captured = dict(zip(value.__code__.co_freevars, value.__closure__ or ()))
        # the globals of a library are of its version
        used = dict.fromkeys(captured, _Use()) if library else _used(value.__code__)
        for name, use in sorted(used.items()):
            with contextlib.suppress(KeyError, ValueError):  # built in, or not there yet
                held = captured[name].cell_contents if name in captured else value.__globals__[name]
                yield from (name, *self.use(held, use, f"{name} in {where}"))

    def use(self, held: Any, use: "_Use", where: str) -> Iterator[str]:
        if use.changed and not isinstance(held, NO_CODE):
            if use.read:
                raise LabError(
                    f"The store cannot tell these runs from others: {where} is changed there and read as well, so a "
                    "result depends on the runs before. Copy it inside the function; functools.cache keeps results.")
            yield f"a log, {type(held).__qualname__}"  # what is only written decides no result
            return
        yield self.of(held, where)
        if isinstance(held, types.ModuleType) and not self.module(held.__name__):
            for name in sorted(use.attributes):  # a module beside the notebook: what is used of it, as it is now
                yield from (name, self.of(getattr(held, name, None), f"{name} in {where}"))

    def code(self, code: types.CodeType, where: str) -> Iterator[str | bytes]:
        yield code.co_code
        yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_names,
                    code.co_varnames, code.co_freevars, code.co_cellvars, getattr(code, "co_exceptiontable", None)))
        yield from (self.of(constant, where) for constant in code.co_consts)
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME" and step.argval:
                yield from self.imported(step.argval, where)

    def kind(self, value: type, where: str) -> Iterator[str]:
        library = self.module(value.__module__)
        yield from (value.__module__, value.__qualname__, *library)
        if not library or not _found_at(value):
            yield from (self.of(base, where) for base in value.__bases__)
            for name, part in sorted(vars(value).items()):
                described = isinstance(part, (types.MemberDescriptorType, types.GetSetDescriptorType))
                if not described and not name.startswith("_abc_") and (callable(part) or not name.startswith("__")):
                    yield from (name, self.of(part, f"{where}.{name}"))

    def network(self, value, where: str, bare: dict) -> Iterator[str]:
        """A torch module: every module in it with its settings and hooks, every weight."""
        for path, module in value.named_modules():
            hooks = [list(held.values()) for name, held in vars(module).items()
                     if name.endswith(("forward_hooks", "forward_pre_hooks"))]
            own = {name: part for name, part in vars(module).items() if name not in bare}
            yield from (path, str(module.training), self.of(type(module), where), self.of(hooks, where))
            yield self.of(own, f"{where} ({path})")
        for name, weight in [*value.named_parameters(), *value.named_buffers()]:
            yield from (name, self.of(weight, where))

    def thing(self, value: Any, where: str) -> Iterator[str]:
        """Any other object: what pickle would keep of it."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            found = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception as error:
            raise LabError(
                f"The store cannot tell these runs from others: {where} is a {type(value).__name__}, whose content "
                f"cannot be read ({reason(error, 80)}). Make it inside the function, or name it by a setting; or sweep "
                "without a store.") from None
        yield from (self.of(type(value), where), str(getattr(value, "__module__", "")))
        for part in [found] if isinstance(found, str) else found:
            if isinstance(part, dict):  # a generation config's hash of itself is another in every process
                part = {name: held for name, held in part.items() if name != "_original_object_hash"}
            yield self.of(list(part) if isinstance(part, Iterator) else part, where)

    def module(self, name: str) -> list[str]:
        """The version of a library or package, or its source; empty for a notebook, a script and a single module."""
        root = name.partition(".")[0]
        if root not in self.libraries:
            self.libraries[root] = _library(root)
        return self.libraries[root]

    def imported(self, name: str, where: str) -> list[str]:
        """The same, or the source of a single module, and of those that it imports."""
        if name not in self.sources:
            self.sources[name] = None if self.module(name) else _source(name)
        return self.module(name) or [self.of(self.sources[name], where)]


def _library(root: str) -> list[str]:
    if root in sys.stdlib_module_names:
        return [root]
    spec = _spec(root)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    place = (folders or [spec.origin if spec else None])[0]
    if place is None:
        return []
    if any(Path(place).is_relative_to(folder) for folder in INSTALLED):
        return [root, _version(root) or str(getattr(sys.modules.get(root), "__version__", ""))]
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
    return [root, *(_digest(file.read_bytes()) for file in files)] if folders else []


def _spec(root: str):
    try:
        return None if root in ("", "__main__") else importlib.util.find_spec(root)
    except (ImportError, ValueError, AttributeError):
        return None


def _source(name: str) -> types.CodeType | None:
    spec = _spec(name)
    if not spec or not str(spec.origin).endswith(".py"):
        return None
    return compile(Path(spec.origin).read_bytes(), name, "exec")


def _found_at(value) -> bool:
    """Whether a function or class is what its module has under its name: not one of many made by another function."""
    found = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


@dataclass
class _Use:
    """How code uses a name that is not its own: whether it reads it, changes what it holds, and what of a module."""

    read: bool = False
    changed: bool = False
    attributes: set[str] = field(default_factory=set)


def _used(code: types.CodeType) -> dict[str, _Use]:
    """The names that `code`, and all code inside of it, takes from outside of it."""
    used: dict[str, _Use] = defaultdict(_Use)
    loads: dict[Any, str] = {}  # by the place in the text where an expression begins
    untouched: dict[Any, bool] = {}  # whether what was loaded there is still itself, or what a call returned
    read, previous = set(), None
    for step in dis.get_instructions(code):
        place = step.positions and (step.positions.lineno, step.positions.col_offset)
        if step.opname in LOADS:
            used[step.argval], loads[place], untouched[place] = used[step.argval], step.argval, True
            if previous is None or previous.argval != "len":  # how long a log is, is no result
                read.add(place)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and previous is not None and previous.opname in LOADS:
            used[previous.argval].attributes.add(step.argval)
        if step.opname in STORES or step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in CHANGES:
            if step.argval in used and step.opname.endswith(("GLOBAL", "DEREF")):
                loads[place] = step.argval
                untouched[place] = True
            if untouched.get(place):
                used[loads[place]].changed = True
                read.discard(place)
        elif "CALL" in step.opname:
            untouched[place] = False
        previous = step
    for place in read & loads.keys():
        used[loads[place]].read = True
    for part in code.co_consts:
        for name, use in _used(part).items() if isinstance(part, types.CodeType) else ():
            mine = used[name]
            mine.read, mine.changed = mine.read or use.read, mine.changed or use.changed
            mine.attributes |= use.attributes
    return {name: use for name, use in used.items() if name not in code.co_cellvars}
