"""Functions of the user's: named by a setting as package.module:function, or handed over by a Python program."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import math
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastflow.config.program import NO_PROGRAM, Program
from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of
from fastflow.models.pulse import PULSE

logger = logging.getLogger(__name__)

Source = tuple[str, dict[str, Any]]  # where a record stands, and its fields


class OwnFunction:
    """A function (text, record), called for one response at a time; or (texts, records), called once with the lists of
    all responses, where it has the attribute `takes_lists = True`.
    """

    def __init__(self, setting: str, name: str, program: Program = NO_PROGRAM):
        """Raises FastflowError for a name that cannot be imported, and for what cannot be called so."""
        self._setting, self._named = setting, f"{setting} = {name}"
        function = program.thing(setting, name)
        self._function: Callable[..., Any] = load_function(name, setting) if function is None else function
        self._takes_lists = getattr(self._function, "takes_lists", False) is True
        self._check_signature()

    def digest(self) -> str:
        """Return what changes with the function's file: a digest of it, and "" where there is none."""
        function = inspect.unwrap(getattr(self._function, "func", self._function))  # of a functools.partial
        try:
            file = inspect.getsourcefile(function if hasattr(function, "__qualname__") else type(function))
        except TypeError:  # nothing of Python's
            file = None
        return "" if file is None or not Path(file).is_file() else hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def values(self, texts: Sequence[str], sources: Sequence[Source]) -> list[Any]:
        """Return what it says of each text. Raises FastflowError, with record and response, for whatever it raises."""
        if not texts:
            return []
        if self._takes_lists:
            return self._values_of_lists(texts, sources)
        values = []
        for text, source in zip(texts, sources, strict=True):
            PULSE.work()
            values.append(self._called(text, source[1], about=(text, source)))
        return values

    def numbers(self, texts: Sequence[str], sources: Sequence[Source]) -> list[float]:
        """Return its number for each text. Raises FastflowError for what is no finite number, too."""
        found = zip(self.values(texts, sources), texts, sources, strict=True)
        return [self._number(value, text, source) for value, text, source in found]

    def _values_of_lists(self, texts: Sequence[str], sources: Sequence[Source]) -> list[Any]:
        with PULSE.patient():  # of one call nobody sees how far it is
            answer = self._called(list(texts), [record for _, record in sources], about=(texts[0], sources[0]))
        try:
            values = list(answer)
        except TypeError:
            values = []
        if len(values) != len(texts):
            returned = f"{answer!r:.100}" if not values else counted(len(values), "value")
            raise FastflowError(
                f"{self._named} returned {returned} for {counted(len(texts), 'response')}; with takes_lists it must "
                "return a list with one for each"
            )
        return values

    def _called(self, *arguments: Any, about: tuple[str, Source]) -> Any:
        try:
            return self._function(*arguments)
        except FastflowError:
            raise
        except (Exception, SystemExit) as error:  # an exit would end the run as if it were done
            import torch  # late, since what names a function does not need it

            if isinstance(error, torch.OutOfMemoryError):
                raise
            logger.debug("%s raises", self._setting, exc_info=error)
            said = message_of(error, typed=True)
            inside = traceback.extract_tb(error.__traceback__)[1:2]  # empty where it cannot be called like this
            at = "".join(f" ({frame.filename}:{frame.lineno})" for frame in inside)
            raise FastflowError(f"{self._named} raises {said}{at} for {_named(*about)}; mend the function") from error

    def _number(self, value: Any, text: str, source: Source) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise FastflowError(
                f"{self._named} returned {value!r:.100} for {_named(text, source)}; it must return a finite number"
            )
        return number

    def _check_signature(self) -> None:
        """Raise FastflowError, before anything is sampled, where two arguments by place do not fit the function."""
        given = "(texts, records)" if self._takes_lists else "(text, record)"
        if inspect.iscoroutinefunction(self._function):
            raise FastflowError(f"{self._named} is an async function; define one without async that takes {given}")
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # written in C, without one
            return
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise FastflowError(
                f"{self._named} takes {signature}, but is called with {given}: {error}; give it these two parameters"
            ) from error


def _named(text: str, source: Source) -> str:
    """Name a response in an error: how it begins, and the record that it answers."""
    return f"{text[:60]!r}" + (f", a response to {source[0]}" if source[0] else "")


def load_function(name: str, setting: str) -> Callable[..., Any]:
    """Import `package.module:function`. Raises FastflowError, with the setting, where that fails."""
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        raise FastflowError(
            f"{setting} = {name!r} names a file, but must name a module; {_as_module(module, attribute)}"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise FastflowError(f"{setting} = {name!r} cannot be imported ({error}); {_remedy(module, error)}") from error
    if not callable(function):
        raise FastflowError(f"{setting} = {name!r} is not callable; name a function")
    return function


def _as_module(file: str, attribute: str) -> str:
    """Say how the function of a file is named, and how its module is found."""
    path = Path(file)
    if not path.is_file():
        return f"there is no {file} either: write package.module:function"
    below = not path.is_absolute() and all(part.isidentifier() for part in path.with_suffix("").parts)
    folder = Path(".") if below else path.parent
    module = ".".join(path.relative_to(folder).with_suffix("").parts)
    return f"write {module}:{attribute or 'function'}, and start fastflow with PYTHONPATH={folder}"


def _remedy(module: str, error: Exception) -> str:
    """Say how to name a module, or how to have one of the working directory found: it is not imported from there."""
    first = module.partition(".")[0]
    here = Path(f"{first}.py") if os.path.isfile(f"{first}.py") else Path(first)
    if isinstance(error, ModuleNotFoundError) and error.name == first and here.exists():
        return f"{here} is in the working directory, which fastflow does not import from: start it with PYTHONPATH=."
    return "write package.module:function"
