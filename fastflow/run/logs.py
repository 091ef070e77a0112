"""Shows warnings on the console as text, and silences what other libraries say."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from fastflow.visible import visible

if TYPE_CHECKING:
    from rich.console import Console


class _VisibleMessage(logging.Formatter):
    """The message alone, as text: it may repeat what a data file, a model or a path says."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def show_warnings(handler: logging.Handler) -> None:
    """Show all warnings through this handler alone."""
    handler.setFormatter(_VisibleMessage())
    logging.basicConfig(handlers=[handler], force=True)


class _OneLine(logging.Handler):
    """Says a warning on one line."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        from fastflow.run.console import say

        say(self._console, f"{record.levelname:<8} {self.format(record)}")


def show_own_warnings() -> Console:
    """Show our own warnings on the console, and of other libraries only what matters. Returns the console: bars on
    another one would draw over the warnings.
    """
    from rich.logging import RichHandler

    from fastflow.run.console import make_console

    console = make_console()
    wide = RichHandler(console=console, show_time=False, show_path=False)
    show_warnings(wide if console.is_interactive else _OneLine(console))
    logging.getLogger("fastflow").setLevel(logging.INFO)
    return console


def open_console() -> Console:
    """Set up logging as the command line does, and return its console; other libraries speak only when it matters."""
    console = show_own_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").handlers.clear()  # its own one says the same once more
    return console
