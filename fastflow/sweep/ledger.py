"""OUTPUT/state.json: which runs of a sweep are done, so that the same command again leaves them alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fastflow.config.reader import to_yaml
from fastflow.run.durable import replace_json
from fastflow.run.output_file import writing
from fastflow.sweep.runs import Run

STATE_FILE = "state.json"


class Ledger:
    """The outcomes of a sweep's runs. A run counts as done with the settings that it was done with."""

    def __init__(self, output: Path):
        self._file = output / STATE_FILE
        self._runs: dict[str, dict[str, Any]] = {}
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # none yet, or broken: each run then finds out by its own saves
        if isinstance(kept, dict):
            self._runs = {name: entry for name, entry in kept.items() if isinstance(entry, dict)}

    def is_done(self, run: Run) -> bool:
        """Whether the run has ended well, with these settings, and its policy is still there."""
        entry = self._runs.get(run.name, {})
        done = entry.get("state") == "done" and entry.get("settings") == digest(run)
        return done and (run.directory / "policy").exists()

    def write(self, run: Run, state: str, **facts: Any) -> None:
        """Note how a run stands. Raises FastflowError where the disk takes no more."""
        self._runs[run.name] = {"state": state, "settings": digest(run), **facts}
        with writing(self._file):
            replace_json(self._file, self._runs)


def digest(run: Run) -> str:
    """Name the settings of a run by their content."""
    return hashlib.sha256(to_yaml(run.config).encode()).hexdigest()[:16]
