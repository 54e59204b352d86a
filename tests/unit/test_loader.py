"""Loading handlers by name: what works, and one clear message for each thing that does not."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import HandlerError
from functions.kinds.loader import load, locate

APP = """
import functools

def handler(event, context):
    return event

def one(event): ...
def defaults(event, context, region="x"): ...
def any_number(*arguments): ...
def keyword(event, context, *, needed): ...

class Counting:
    def __call__(self, event, context):
        return "counted"

class OneOnly:
    def __call__(self, event): ...

instance = Counting()
one_only = OneOnly()
bound = functools.partial(lambda region, event, context: region, "eu")
builtin = print
number = 7
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules into an empty working directory; afterwards nothing of them is left imported."""
    monkeypatch.chdir(tmp_path)
    path_before, before = list(sys.path), set(sys.modules)

    def write_module(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write_module
    sys.path[:] = path_before
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(spec: str) -> str:
    """The whole text of the error that loading ``spec`` raises."""
    with pytest.raises(HandlerError) as caught:
        load(spec)
    return str(caught.value)


@pytest.mark.parametrize("spec", ["hr_app.handler", "hr_app:handler", "./hr_app.handler"])
def test_functions_are_found_in_the_working_directory(write: Write, spec: str) -> None:
    """Both separators work, and the working directory is on the import path."""
    write("hr_app.py", APP)
    assert load(spec)("event", None) == "event"


@pytest.mark.parametrize("spec", ["hr_pkg/deep/app.handler", "hr_pkg.deep.app.handler", "hr_pkg/deep/app:handler"])
def test_slashes_stand_for_dots(write: Write, spec: str) -> None:
    """AWS's notation for a module in a folder is understood."""
    write("hr_pkg/deep/app.py", APP)
    assert load(spec)("event", None) == "event"


def test_the_name_is_split_at_the_last_dot(write: Write) -> None:
    """A package that has an attribute named like its module's function is not taken for it."""
    write("hr_pkg/__init__.py", "app = 1")
    write("hr_pkg/app.py", APP)
    assert load("hr_pkg.app.handler")("event", None) == "event"


@pytest.mark.parametrize("name", ["instance", "bound", "defaults", "any_number", "builtin"])
def test_anything_that_can_be_called_with_two_arguments_is_a_handler(write: Write, name: str) -> None:
    """Instances with __call__, partials, defaults and variable arguments are all taken."""
    write("hr_app.py", APP)
    assert callable(load(f"hr_app.{name}"))


def test_instances_and_partials_are_called_as_they_are(write: Write) -> None:
    """What was loaded is the object itself."""
    write("hr_app.py", APP)
    assert load("hr_app.instance")(None, None) == "counted"
    bound = load("hr_app.bound")
    assert isinstance(bound, functools.partial)
    assert bound(None, None) == "eu"


@pytest.mark.parametrize(
    "spec", ["handler", "", ".", "app.", ".handler", "app.py:", "my app.handler", "a..b", "app.1x"]
)
def test_malformed_names_are_refused(write: Write, spec: str) -> None:
    """A name that is not module.function is refused by its form, before any import."""
    assert f"handler {spec!r} is not of the form module.function" in refusal(spec)


def test_a_missing_module_names_the_nearest(write: Write) -> None:
    """The message says where was looked and what is near."""
    path = write("hr_clicks.py", APP)
    message = refusal("hr_click.handler")
    assert "there is no module 'hr_click'" in message
    assert str(path.parent) in message
    assert "nearest: hr_clicks" in message


def test_a_missing_module_of_a_package_names_the_package(write: Write) -> None:
    """The part of a dotted name that is missing is named, with the folder of its package."""
    folder = write("hr_pkg/clicks.py", APP).parent
    message = refusal("hr_pkg.click.handler")
    assert f"'click' is not in package hr_pkg ({folder})" in message
    assert "nearest: clicks" in message


def test_a_module_is_no_package(write: Write) -> None:
    """Looking into a module for a module says so."""
    write("hr_app.py", APP)
    assert "is a module, not a package, so there is no module 'hr_app.sub'" in refusal("hr_app.sub.handler")


def test_a_missing_dependency_is_not_taken_for_a_missing_handler(write: Write) -> None:
    """An import inside the module that fails names the module, the line and what is not installed."""
    path = write("hr_app.py", "import json\nimport hr_not_there.sub\n")
    message = refusal("hr_app.handler")
    assert f"hr_app imports 'hr_not_there', which is not installed ({path}:2)" in message
    assert "install hr_not_there" in message


def test_an_error_while_importing_is_located(write: Write) -> None:
    """The last line of the traceback and the place that raised, in one line; the cause is kept."""
    path = write("hr_app.py", "def f():\n    return {}['x']\n\nf()\n")
    with pytest.raises(HandlerError, match="importing hr_app raised KeyError: 'x'") as caught:
        load("hr_app.handler")
    assert f"({path}:2)" in caught.value.message
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_syntax_error_is_located(write: Write) -> None:
    """A module that does not parse is named with the faulty line."""
    path = write("hr_app.py", "x = 1\ndef handler(:\n")
    message = refusal("hr_app.handler")
    assert "SyntaxError" in message
    assert f"({path}:2)" in message


def test_a_module_that_exits_is_an_error_and_no_exit(write: Write) -> None:
    """A script that calls sys.exit when imported does not end the program."""
    write("hr_app.py", "import sys\nsys.exit(3)\n")
    assert "importing hr_app raised SystemExit: 3" in refusal("hr_app.handler")


def test_a_missing_attribute_names_the_nearest(write: Write) -> None:
    """A typing mistake in the function's name is told from a missing module."""
    path = write("hr_app.py", APP)
    message = refusal("hr_app.handlr")
    assert f"module hr_app ({path}) has no 'handlr'" in message
    assert "nearest: handler" in message


def test_a_module_without_functions_says_so(write: Write) -> None:
    """Nothing to suggest is said as such."""
    write("hr_app.py", "x = 1")
    assert "the module defines nothing that can be called" in refusal("hr_app.handler")


def test_imported_names_are_not_offered(write: Write) -> None:
    """Only what the module itself defines is near; without anything like it nothing of others is listed."""
    write(
        "hr_app.py", "from json import dumps, loads\nfrom pathlib import Path\ndef dumpling(event, context): ...\n"
    )
    assert "nearest: dumpling" in (message := refusal("hr_app.dump"))
    assert "dumps" not in message
    assert "Path" not in refusal("hr_app.Pat")
    write("hr_bare.py", "from json import dumps\n")
    assert "the module defines nothing that can be called" in refusal("hr_bare.dump")


def test_what_a_module_says_that_it_offers_is_offered(write: Write) -> None:
    """``__all__`` decides, also for names from elsewhere; what is in it but cannot be called is left out."""
    listed = "from json import dumps\n__all__ = ['dumps', 'dumpy', 'gone']\ndumpy = 7\n"
    write("hr_app.py", listed + "def dumper(event, context): ...\n")
    message = refusal("hr_app.dump")
    assert "nearest: dumps" in message
    assert "dumpy" not in message
    assert "dumper" not in message


@pytest.mark.parametrize("spec", ["hr_pkg.clicks", "hr_pkg:clicks", "hr_pkg/clicks.deep"])
@pytest.mark.parametrize("imported", [True, False])
def test_a_module_in_the_place_of_a_function_lists_its_functions(write: Write, spec: str, imported: bool) -> None:
    """Whether it is imported already or not: it is told what the name is, and what may follow."""
    write("hr_pkg/__init__.py", "import hr_pkg.clicks.deep" if imported else "")
    made = "def pages(event, context): ...\ndef pages_of(*, columns): ...\n"
    write("hr_pkg/clicks/__init__.py", made)
    write("hr_pkg/clicks/deep.py", made)
    kind, name = ("module", "hr_pkg.clicks.deep") if "deep" in spec else ("package", "hr_pkg.clicks")
    message = refusal(spec)
    assert f"handler {spec!r} is a {kind}; a function in it must be named" in message
    assert message.endswith(f"candidates: {name}.pages)") or message.endswith(f"candidates: {name}.pages")


def test_a_package_of_our_own_lists_its_handlers() -> None:
    """The package's handlers are named in full, without what makes handlers."""
    message = refusal("functions.clickstream")
    assert "is a package; a function in it must be named" in message
    assert "functions.clickstream.page_events, functions.clickstream.per_minute" in message
    assert "page_events_of" not in message


def test_what_cannot_be_called_is_refused(write: Write) -> None:
    """A number, a module and a class are each named for what they are."""
    write("hr_app.py", APP)
    assert "is of type int, which cannot be called" in refusal("hr_app.number")
    assert "is a module, which cannot be called" in refusal("hr_app.functools")
    assert "is a class, not a function" in refusal("hr_app.Counting")


@pytest.mark.parametrize("name", ["one", "one_only", "keyword"])
def test_a_wrong_number_of_parameters_is_refused(write: Write, name: str) -> None:
    """What the signature tells is said before the first batch, with what the call looks like."""
    write("hr_app.py", APP)
    message = refusal(f"hr_app.{name}")
    assert "but is called with (event, context)" in message
    assert f"define it as {name}(event, context)" in message


def test_locating_imports_nothing(write: Write, tmp_path: Path) -> None:
    """A module that would raise is found all the same, in a folder, a package or as a name with a colon."""
    before = set(sys.modules)
    for name in ("hr_far/app.py", "hr_far/deep/app.py", "hr_far/deep/__init__.py"):
        write(name, "raise SystemExit(3)")
    root = tmp_path / "hr_far"
    for spec, name in (
        ("app.handler", "app.handler"),
        ("app:handler", "app.handler"),
        ("./deep/app.handler", "deep.app.handler"),
        ("deep.handler", "deep.handler"),
        ("functions.samples.handlers.page_events", "functions.samples.handlers.page_events"),
    ):
        assert locate(spec, root) == name
    assert {name for name in set(sys.modules) - before if name.startswith(("app", "deep"))} == set()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("handler", "handler 'handler' is not of the form module.function"),
        ("app.py.handler", r"app \(.*app.py\) is a module, not a package, so there is no module 'app.py'"),
        ("ap.handler", "there is no module 'ap': 'ap' is not in .* or on the import path\n  nearest: app"),
        ("deep.ap.handler", "there is no module 'deep.ap': 'ap' is not in package deep\n  nearest: app"),
        ("email.nothing.handler", "there is no module 'email.nothing': 'nothing' is not in package email"),
    ],
)
def test_what_cannot_be_located_is_named(write: Write, tmp_path: Path, spec: str, message: str) -> None:
    """Malformed names and missing modules are said before any process starts, with what is near."""
    for name in ("hr_far/app.py", "hr_far/deep/__init__.py", "hr_far/deep/app.py"):
        write(name, "")
    with pytest.raises(HandlerError, match=message):
        locate(spec, tmp_path / "hr_far")


def test_the_loader_and_the_events_need_no_arrow() -> None:
    """Building events works in a process that has only the standard library."""
    import subprocess

    code = (
        "import sys; from functions.kinds import calling, dynamodb, firehose, kafka, kinesis, loader;"
        "print(sorted(set(sys.modules) & {'pyarrow', 'numpy', 'orjson', 'duckdb', 'pydantic'}))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
