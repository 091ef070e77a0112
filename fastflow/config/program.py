"""What a Python program hands to its run in place of names, and what stands for it in the run's settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from fastflow.config.schema import Config

HELD = "program:"  # begins the value of a setting for which only a program has the thing
PROMPTS = "data.path"
FUNCTIONS = ("objective.reward", "objective.format_check", "eval.reward")


@dataclass(frozen=True)
class Program:
    """What a program hands to its run.

    things: prompts and functions by the setting that else names them. on_step: called with each step's number and
    metrics, after they are recorded.
    """

    things: Mapping[str, Any] = field(default_factory=dict)
    on_step: Callable[[dict[str, Any]], None] | None = None

    def thing(self, setting: str, value: str) -> Any:
        """Return what a setting's value stands for; None where it is a name.

        Raises FastflowError where it stands for what another program has.
        """
        if not value.startswith(HELD):
            return None
        if setting not in self.things:
            script = value.removeprefix(HELD).partition(":")[0]
            raise FastflowError(
                f"{setting} = {value} stands for what only the Python program {script} has, and no file or module "
                f'holds it; start {script} again, with resume="yes" to go on with its run'
            )
        return self.things[setting]

    def check(self, config: Config) -> None:
        """Raise FastflowError where the settings stand for what another program has."""
        for name in (PROMPTS, *FUNCTIONS):
            section, _, entry = name.partition(".")
            self.thing(name, getattr(getattr(config, section), entry) or "")


NO_PROGRAM = Program()


def stand_in(setting: str, thing: Any) -> str:
    """Return the value of a setting that stands for a thing: the script, and for a function its qualified name."""
    if setting not in FUNCTIONS:
        return f"{HELD}{script()}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module = "" if named.__module__ == "__main__" else f"{named.__module__}."
    return f"{HELD}{script()}:{module}{named.__qualname__}"


def script() -> str:
    """Return the name of the script or module that this process runs."""
    main = sys.modules["__main__"]
    if (specification := getattr(main, "__spec__", None)) is not None:
        return specification.name
    file = getattr(main, "__file__", None)
    return "session" if file is None else Path(file).name
