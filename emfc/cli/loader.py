"""Loading a program from a Python file, with every way that this fails said in one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from emfc.cli.options import require_named
from emfc.errors import UserError

__all__ = ["UserProgram", "load_program"]


@dataclass(frozen=True)
class UserProgram:
    """A program and what its file offers beside it.

    Attributes:
        path: The file.
        name: Name of the program in the file.
        model: The Pyro model.
        data: The file's ``data`` function, if it has one.
        start: The file's ``start_NAME`` of the program, or else its ``start`` function, if it has one.
        settings: The model's keyword arguments.
    """

    path: Path
    name: str
    model: Callable[..., Any]
    data: Callable[..., Any] | None
    start: Callable[..., Any] | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """File and name as the user would write them."""
        return self.path.name if self.name == "model" else f"{self.path.name}:{self.name}"

    def call_data(self, *, seed: int, rows: int | None = None) -> Any:
        """Call the file's ``data`` with those settings that it takes, and the seed if it takes one.

        Args:
            seed: The seed.
            rows: The number of examples, for which ``data`` must take ``n``; left out, its own.

        Raises:
            UserError: There is no ``data``, it takes no ``n`` or no ``seed`` where examples are counted, or it raises.
        """
        if self.data is None:
            raise UserError(f"{self.path} has no data(); give the examples with --data FILE")
        offered = {"seed": seed, **self.settings}
        if rows is not None:
            offered |= {"n": rows, "seed": seed}
            for name in ("n", "seed"):
                if name not in _accepted(self.data, offered):
                    raise UserError(
                        f"{self.path}: data() must take n and seed to draw examples afresh; it takes no {name!r}"
                    )
        return _call(self.path, "data()", self.data, (), _accepted(self.data, offered))

    def call_start(self, training: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call the file's ``start`` with the training part of the data and those settings that it takes.

        Raises:
            UserError: It raises, or returns no mapping.
        """
        if self.start is None:
            return {}
        values = _call(self.path, "start()", self.start, (training,), _accepted(self.start, self.settings, skip=1))
        if not isinstance(values, Mapping):
            raise UserError(f"{self.path}: start() must return a mapping from parameter name to starting value")
        return values

    def parse(self, *, seed: int) -> Any:
        """Read the program once; what it prints goes to standard error.

        Raises:
            UserError: It needs an argument that nothing gives; see `arguments`.
            CompileError: The program is refused.
        """
        from emfc.compiler import parse

        arguments = self.arguments(seed=seed)
        with contextlib.redirect_stdout(sys.stderr):
            return parse(self.model, **arguments)

    def takes(self, name: str) -> bool:
        """Whether the model has a keyword argument of that name."""
        return name in _named(_parameters(self.model) or {})

    def arguments(self, *, seed: int) -> dict[str, Any]:
        """Give the model's keyword arguments: its settings, and what ``data()`` has for those that are still missing.

        Raises:
            UserError: Neither the model nor the file's ``data`` and ``start`` take a setting, or the model needs an
                argument that nothing gives.
        """
        parameters = _parameters(self.model)
        if parameters is None:
            return dict(self.settings)
        if not _takes_any(parameters):
            hooks = [_parameters(hook) or {} for hook in (self.data, self.start) if hook is not None]
            named = [name for names in (parameters, *hooks) for name in _named(names)]
            if not any(_takes_any(hook) for hook in hooks):
                require_named(
                    list(self.settings), list(dict.fromkeys(named)), what=f"{self.title}: the keyword argument"
                )
        arguments = _accepted(self.model, self.settings)
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (*_BY_NAME, inspect.Parameter.POSITIONAL_ONLY)
            and name not in arguments
        ]
        if missing and self.data is not None:
            given = self.call_data(seed=seed)
            if isinstance(given, Mapping):
                arguments.update({name: given[name] for name in missing if name in given})
        missing = [name for name in missing if name not in arguments]
        if missing:
            raise UserError(f"{self.title} needs the argument {missing[0]!r}; give it with --set {missing[0]}=VALUE")
        return arguments


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_program(text: str, settings: Mapping[str, Any] | None = None) -> UserProgram:
    """Import a program file under a private name and take the program out of it.

    What the file prints goes to standard error.

    Args:
        text: ``FILE.py`` or ``FILE.py:NAME``.
        settings: The model's keyword arguments.

    Returns:
        The program.

    Raises:
        UserError: The file is missing, is no Python file, does not parse, raises, or has no such program.
    """
    path, name = _split(text)
    if not path.exists():
        raise UserError(f"the program file {path} does not exist")
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} is not a Python file; a program is given as FILE.py or FILE.py:NAME")
    module = _import(path)
    if not hasattr(module, name):
        offered = [key for key, value in vars(module).items() if callable(value) and _defined_here(value, module)]
        raise UserError(f"{path} has no {name!r}; {_offer(path, offered)}")
    model = getattr(module, name)
    if not callable(model):
        raise UserError(f"{path}: {name!r} is not a program but {type(model).__name__}; a program is a callable")
    if inspect.isclass(model):
        raise UserError(f"{path}: {name!r} is a class; a program is an instance of it, such as `model = {name}()`")
    start = _hook(module, f"start_{name}") or _hook(module, "start")
    return UserProgram(path, name, model, _hook(module, "data"), start, dict(settings or {}))


def _split(text: str) -> tuple[Path, str]:
    path, colon, name = text.rpartition(":")
    if colon and name.isidentifier() and path.endswith(".py"):
        return Path(path), name
    if colon and not name and path.endswith(".py"):
        raise UserError(f"no name follows the colon of {text!r}; write FILE.py or FILE.py:NAME")
    if colon and path.endswith(".py"):
        raise UserError(f"{name!r} in {text!r} is not the name of a program; write FILE.py:NAME")
    return Path(text), "model"


def _import(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    private = f"_emfc_program_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{digest}"
    specification = importlib.util.spec_from_file_location(private, path)
    if specification is None or specification.loader is None:
        raise UserError(f"{path} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[private] = module
    with _beside(path), contextlib.redirect_stdout(sys.stderr):
        try:
            specification.loader.exec_module(module)
        except SyntaxError as error:
            where = f"{error.filename or path}:{error.lineno}" if error.lineno else str(path)
            raise UserError(f"{where}: the program does not parse: {error.msg}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{_where(path, error)}: importing the program raised {_told(error)}") from error
    return module


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a program import the files that lie beside it, as a script may."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _call(path: Path, what: str, function: Callable[..., Any], arguments: tuple[Any, ...], named: Any) -> Any:
    with _beside(path), contextlib.redirect_stdout(sys.stderr):
        try:
            return function(*arguments, **named)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{_where(path, error)}: {what} raised {_told(error)}") from error


def _where(path: Path, error: BaseException) -> str:
    """The last line of the user's file that the error passed through."""
    full = path.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == full]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    forward = getattr(function, "forward", None)
    try:
        return inspect.signature(forward if callable(forward) else function).parameters
    except (TypeError, ValueError):
        return None


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any], *, skip: int = 0) -> dict[str, Any]:
    """Those of the offered arguments that a hook takes by name."""
    parameters = _parameters(function)
    if parameters is None:
        return {}
    if _takes_any(parameters):
        return dict(offered)
    named = _named(parameters)[skip:]
    return {name: value for name, value in offered.items() if name in named}


def _named(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.kind in _BY_NAME]


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def _hook(module: ModuleType, name: str) -> Callable[..., Any] | None:
    hook = getattr(module, name, None)
    return hook if callable(hook) else None


def _defined_here(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and not inspect.isclass(value)


def _offer(path: Path, offered: list[str]) -> str:
    programs = [name for name in offered if name not in ("data", "start") and not name.startswith("_")]
    if not programs:
        return "a program file defines a callable `model`"
    return f"it defines {', '.join(programs[:5])}: give {path}:{programs[0]}"
