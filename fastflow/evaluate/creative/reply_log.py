"""What a judge has said, one line of JSON a reply, appended as it comes: a killed evaluation asks nothing twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastflow.evaluate.creative.client import Reply
from fastflow.run.output_file import writing


class ReplyLog:
    """The replies in one file. Lines that cannot be read, as the last one after a kill, are asked again."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, Reply] = {}
        if not path.is_file():
            return
        with writing(path):
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("rb+") as file:
                    file.truncate(whole)
        for line in content[:whole].splitlines():
            self._take(line)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Reply | None:
        """Return the reply to the request with this key, if there is one."""
        return self._known.get(key)

    def add(self, key: str, about: dict[str, Any], reply: Reply, grades: Any) -> None:
        """Keep a reply. about: which prompt, sample and vote it judges. grades: what was read out of it."""
        line = {"key": key, **about, "grades": grades, **dataclasses.asdict(reply)}
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")  # ASCII: half of a character is no text in UTF-8
        self._known[key] = reply

    def _take(self, line: bytes) -> None:
        names = [field.name for field in dataclasses.fields(Reply)]
        try:
            tree = json.loads(line)
            self._known[tree["key"]] = Reply(**{name: tree[name] for name in names})
        except (ValueError, KeyError, TypeError):
            return
