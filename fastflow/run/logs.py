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


def show_own_warnings() -> None:
    """Show our own warnings on the console, and of other libraries only what matters."""
    from rich.logging import RichHandler

    from fastflow.run.console import make_console

    show_warnings(RichHandler(console=make_console(), show_time=False, show_path=False))
    logging.getLogger("fastflow").setLevel(logging.INFO)


def quiet_libraries() -> None:
    """Our own warnings on the console; other libraries' chatter only when it matters."""
    show_own_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").handlers.clear()  # its own one says the same once more


def open_console() -> Console:
    """Set up logging as the command line does, and return its console, for a program that calls `train` itself."""
    from fastflow.run.console import make_console

    quiet_libraries()
    return make_console()
