"""Finding a handler by its name, "module.function", and saying plainly what is wrong with it.

`load` imports it into this process; `locate` only looks, for functions that run in processes of their own. Not
here: calling it. Needs the standard library alone (and `engine.errors`, which does too).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from engine.errors import HandlerError

Function = Callable[..., object]

#: What every kind passes, for messages.
ARGUMENTS = ("event", "context")

#: Functions of a module that a message lists.
CANDIDATES_MAX = 10


def load(spec: str, *, arguments: tuple[str, ...] = ARGUMENTS) -> Function:
    """The function that ``spec`` names: "module.function", "module:function" or "folder/module.function".

    As on AWS the name is split at its last dot, "/" in the module part stands for ".", and the working
    directory is on the import path first, as a function's root folder is there. The module is imported
    (once per process). ``arguments`` names the positional arguments of every call; a function that cannot
    take that many is refused here instead of at its first batch.

    Raises HandlerError: a malformed name, no such module, an error while it is imported, no such attribute,
    a module instead of a function, not callable, or a wrong number of parameters.
    """
    module_name, attribute = _split(spec)
    root = str(Path.cwd())
    if root not in sys.path:
        sys.path.insert(0, root)
    module = _import(spec, module_name)
    function = _attribute(spec, module, attribute, arguments)
    _check_callable(spec, function, arguments)
    return function  # type: ignore[return-value]  # _check_callable has looked


def locate(spec: str, root: Path) -> str:
    """The name of a function, as "module.function", whose module is below ``root`` or on the import path.

    Nothing is imported, so what happens when it is, and whether the function is there, is not known. Raises
    HandlerError for a malformed name and a missing module.
    """
    module_name, attribute = _split(spec)
    importlib.invalidate_caches()
    parts = module_name.split(".")
    folders = [str(root)]
    for depth, part in enumerate(parts, 1):
        name = ".".join(parts[:depth])
        found = PathFinder.find_spec(name, folders)
        if found is None and depth == 1:
            with contextlib.suppress(ValueError):  # the program itself, __main__, has no place
                found = importlib.util.find_spec(name)
        if found is None:
            place = f"{root} or on the import path" if depth == 1 else f"package {'.'.join(parts[: depth - 1])}"
            raise _not_there(spec, module_name, part, place, folders)
        if found.submodule_search_locations is None and depth < len(parts):
            raise _no_package(spec, name, found.origin, ".".join(parts[: depth + 1]))
        folders = list(found.submodule_search_locations or ())
    return f"{module_name}.{attribute}"


def _split(spec: str) -> tuple[str, str]:
    separator = ":" if ":" in spec else "."
    module_name, _, attribute = spec.rpartition(separator)
    module_name = module_name.removeprefix("./").replace("/", ".")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise HandlerError(
            f"handler {spec!r} is not of the form module.function",
            hint="for a function `handler` in app.py write app.handler",
        )
    return module_name, attribute


def _import(spec: str, module_name: str) -> ModuleType:
    importlib.invalidate_caches()  # the file may be younger than the finder's listing of its folder
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise _no_module(spec, module_name, missing) from None
        raise HandlerError(
            f"handler {spec!r}: {module_name} imports {missing!r}, which is not installed ({_where(error)})",
            hint=f"install {missing.partition('.')[0]} beside headrace, or mend the import",
        ) from error
    except (Exception, SystemExit) as error:
        raise HandlerError(
            f"handler {spec!r}: importing {module_name} raised {describe(error)} ({_where(error)})"
        ) from error


def _no_module(spec: str, module_name: str, missing: str) -> HandlerError:
    """``missing`` is the part of the dotted name that was not found: the module itself or a parent."""
    parent_name, _, leaf = missing.rpartition(".")
    parent = sys.modules.get(parent_name) if parent_name else None
    if parent is None:
        place = f"the working directory {Path.cwd()} or on the import path"
        return _not_there(spec, module_name, leaf, place, [str(Path.cwd())])
    if not hasattr(parent, "__path__"):
        return _no_package(spec, parent_name, getattr(parent, "__file__", None), missing)
    folders = [str(folder) for folder in parent.__path__]
    return _not_there(spec, module_name, leaf, f"package {parent_name} ({', '.join(folders)})", folders)


def _no_package(spec: str, name: str, origin: str | None, missing: str) -> HandlerError:
    return HandlerError(
        f"handler {spec!r}: {name} ({origin or 'built in'}) is a module, not a "
        f"package, so there is no module {missing!r}"
    )


def _not_there(spec: str, module_name: str, leaf: str, place: str, folders: Sequence[str]) -> HandlerError:
    near = difflib.get_close_matches(leaf, _modules_of([Path(folder) for folder in folders]), n=3)
    hint = (
        f"nearest: {', '.join(near)}" if near else "the name is a module's, not a file's: app.handler, not app.py"
    )
    if not place.startswith("package") and leaf in sys.stdlib_module_names:
        hint = f"{leaf} is also the name of a standard library module; rename yours"
    return HandlerError(
        f"handler {spec!r}: there is no module {module_name!r}: {leaf!r} is not in {place}", hint=hint
    )


def _modules_of(folders: list[Path]) -> list[str]:
    names = []
    for folder in folders:
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.suffix == ".py" or (entry / "__init__.py").is_file():
                    names.append(entry.stem)
    return names


def _where(error: BaseException) -> str:
    """The place that raised, as file:line, without the import machinery's frames."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
        and frame.filename not in (__file__, importlib.__file__)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no source line"


def describe(error: BaseException) -> str:
    """The last line of a traceback, such as ValueError: text, on one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())


def _attribute(spec: str, module: ModuleType, attribute: str, arguments: tuple[str, ...]) -> object:
    try:
        found: object = getattr(module, attribute)
    except AttributeError:
        inner = f"{module.__name__}.{attribute}"
        # A module of a package is its attribute only once somebody has imported it.
        if hasattr(module, "__path__") and importlib.util.find_spec(inner) is not None:
            raise _only_a_module(spec, _import(spec, inner), arguments) from None
        names = _functions_of(module)
        near = difflib.get_close_matches(attribute, names, n=3) or sorted(names)[:5]
        raise HandlerError(
            f"handler {spec!r}: module {module.__name__} ({getattr(module, '__file__', 'built in')}) "
            f"has no {attribute!r}",
            hint=f"nearest: {', '.join(near)}" if near else "the module defines nothing that can be called",
        ) from None
    if isinstance(found, ModuleType) and found.__name__ == f"{module.__name__}.{attribute}":
        raise _only_a_module(spec, found, arguments)
    return found


def _functions_of(module: ModuleType) -> list[str]:
    """The names that a module offers to be called: those of ``__all__``, else what it or its modules define."""
    listed = [name for name in getattr(module, "__all__", ()) if _is_function(getattr(module, name, None))]
    return listed or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and _is_function(value)
        and f"{getattr(value, '__module__', None)}.".startswith(f"{module.__name__}.")
    ]


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _only_a_module(spec: str, module: ModuleType, arguments: tuple[str, ...]) -> HandlerError:
    name = module.__name__
    names = _functions_of(module)
    # Others, such as what makes handlers, are shown only where nothing else is.
    fitting = [each for each in names if _misfit(getattr(module, each), arguments) is None] or names
    kind = "package" if hasattr(module, "__path__") else "module"
    return HandlerError(
        f"handler {spec!r} is a {kind}; a function in it must be named",
        hint=f"candidates: {', '.join(f'{name}.{each}' for each in fitting[:CANDIDATES_MAX])}"
        if fitting
        else f"the {kind} defines nothing that can be called",
    )


def _misfit(
    function: Callable[..., object], arguments: tuple[str, ...]
) -> tuple[inspect.Signature, TypeError] | None:
    """The signature and why a call with ``arguments`` does not fit it."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None  # some callables of extension modules have none; the first call will tell
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return signature, error
    return None


def _check_callable(spec: str, function: object, arguments: tuple[str, ...]) -> None:
    if isinstance(function, type):
        raise HandlerError(
            f"handler {spec!r} is a class, not a function",
            hint=f"name an instance that has __call__, or a function that makes a {function.__name__}",
        )
    if not callable(function):
        kind = "a module" if isinstance(function, ModuleType) else f"of type {type(function).__name__}"
        raise HandlerError(f"handler {spec!r} is {kind}, which cannot be called", hint="name a function")
    if (misfit := _misfit(function, arguments)) is not None:
        signature, error = misfit
        raise HandlerError(
            f"handler {spec!r} has the parameters {signature}, but is called with "
            f"({', '.join(arguments)}): {error}",
            hint=f"define it as {spec.replace(':', '.').rpartition('.')[2]}({', '.join(arguments)})",
        )
