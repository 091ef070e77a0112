"""Where a run's saves are, which of them are whole, and which are kept.

RUN/checkpoints/step-12/             one save: never changed once it has this name
RUN/checkpoints/step-12-updates-27/  a save inside step 13, after the 27th update of the run
RUN/checkpoints/step-14.new/         one that is being written, and step-2.old/, that is being deleted
RUN/checkpoints/step-10.damaged/     one that did not prove itself when the run was resumed
RUN/policy, RUN/adapter              links to the newest one's, or copies where there are no links
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastflow.errors import FastflowError
from fastflow.run.durable import FRESH, flush_directory
from fastflow.run.manifest import Damaged, Manifest, read_manifest, verify

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
SHOWN = ("policy", "adapter")  # parts of the newest save that the run directory names
_OLD, _DAMAGED = ".old", ".damaged"
_NAME = re.compile(r"step-(\d+)(?:-updates-(\d+))?")


class Save(NamedTuple):
    """A save and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def updates(self) -> int:
        return self.manifest.updates


class Checkpoints:
    """The saves of one run. keep: how many of the newest stay. best: whether the one with the highest metric does, or
    the lowest where it is "lowest".
    """

    def __init__(self, run: Path, *, keep: int = 2, best: str | None = None):
        self.run, self.directory = run, run / CHECKPOINTS
        self._keep, self._best = keep, best
        self._proved: dict[str, Save] = {}  # by name: written by this process, or verified by it

    def newest_whole(self) -> Save | None:
        """The newest save that proves itself; damaged ones are named and set aside. None where there are none at all.

        Raises FastflowError where there are saves and none is whole, and where this user may not read one.
        """
        reasons = []
        for path in sorted(self._named(), key=_order, reverse=True):
            try:
                save = Save(path, verify(path))
                if path.name != name_of(save.manifest.step, save.manifest.updates, inside=_is_inside(path)):
                    raise Damaged(f"it holds step {save.manifest.step}, update {save.manifest.updates}")
            except Damaged as damage:
                if isinstance(damage.__cause__, PermissionError):  # it may be whole
                    raise FastflowError(
                        f"the save in {path} may not be read: {damage}; correct the permissions of its files (chown, "
                        "chmod), or move it away to go on with the one before it"
                    ) from damage
                logger.warning("the save in %s is damaged: %s; the one before it is tried", path, damage)
                reasons.append((path, damage))
                continue
            for damaged, _ in reasons:
                _set_aside(damaged)
            self._proved[path.name] = save
            return save
        if reasons:
            newest, why = reasons[0]
            raise FastflowError(
                f"no save in {self.directory} is whole, of {len(reasons)} there (the newest, {newest.name}: {why}); "
                "start again with --run.overwrite true, or restore them from a copy"
            )
        return None

    def whole_after(self, updates: int) -> Save | None:
        """The save after so many updates, otherwise the newest; only one that proves itself. Changes nothing."""
        found: list[tuple[bool, tuple[int, int], Path]] = []
        for path in self._named():
            with contextlib.suppress(Damaged):
                found.append((read_manifest(path).updates == updates, _order(path), path))
        for _, _, path in sorted(found, reverse=True):
            with contextlib.suppress(Damaged):
                return Save(path, verify(path))
        return None

    def begin(self, name: str) -> Path:
        """An empty directory for a save of this name."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.discard()
        fresh = self.directory / (name + FRESH)
        fresh.mkdir()
        return fresh

    def publish(self, fresh: Path, manifest: Manifest) -> Save:
        """Give a save that is complete and on the disk its name, and have the run name it as its newest."""
        target = fresh.with_name(fresh.name.removesuffix(FRESH))
        fresh.rename(target)
        flush_directory(self.directory)
        save = Save(target, manifest)
        self._proved[target.name] = save
        self.show(save)
        return save

    def show(self, save: Save) -> None:
        """Have RUN/policy and RUN/adapter name this save's."""
        for part in SHOWN:
            _name(self.run / part, save.path / part)
        flush_directory(self.run)

    def show_newest(self) -> None:
        """The same for the newest proved one."""
        if self._proved:
            self.show(max(self._proved.values(), key=lambda save: _order(save.path)))

    def retire(self) -> None:
        """Delete the saves that are no longer kept: only what has `keep` proved ones after it."""
        proved = sorted(self._proved.values(), key=lambda save: _order(save.path), reverse=True)[: self._keep]
        if len(proved) < self._keep:
            return
        kept = {save.path for save in proved} | self._best_one()
        for path in self._named(damaged=True):
            if path not in kept and _order(path) < _order(proved[-1].path):
                self._proved.pop(path.name, None)
                going = path.with_name(path.name + _OLD)  # or a kill could leave half of it under its name
                with contextlib.suppress(OSError):
                    path.rename(going)
                    remove(going)

    def discard(self) -> None:
        """Drop what a save, or a deletion, that never came to its end has left."""
        for path in (*self.directory.glob(f"*{FRESH}"), *self.directory.glob(f"*{_OLD}")):
            if path.is_symlink():
                path.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)

    def _best_one(self) -> set[Path]:
        """The save with the best metric; the first of several, as evaluations are compared."""
        if self._best is None:
            return set()
        sign = -1 if self._best == "lowest" else 1
        scores: dict[Path, float] = {}
        for path in self._named():
            with contextlib.suppress(Damaged):
                metric = (self._proved[path.name].manifest if path.name in self._proved else read_manifest(path)).metric
                if metric is not None and math.isfinite(metric):
                    scores[path] = sign * metric
        best = max(scores.values(), default=None)
        return {min((path for path in scores if scores[path] == best), key=_order)} if scores else set()

    def _named(self, *, damaged: bool = False) -> Iterator[Path]:
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            name = path.name.removesuffix(_DAMAGED) if damaged else path.name
            if _NAME.fullmatch(name) and path.is_dir():
                yield path


def name_of(step: int, updates: int, *, inside: bool) -> str:
    """inside: whether the next step is under way, some of its updates done."""
    return f"step-{step}-updates-{updates}" if inside else f"step-{step}"


def _is_inside(path: Path) -> bool:
    return "-updates-" in path.name


def _order(path: Path) -> tuple[int, int]:
    """Steps, then updates: a save inside step N + 1 comes after that of step N."""
    found = _NAME.match(path.name)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _name(link: Path, target: Path) -> None:
    """Make `link` a relative link to the target in one motion, else a copy; remove it where there is no target."""
    fresh, old = link.with_name(link.name + FRESH), link.with_name(link.name + _OLD)
    for leftover in (fresh, old):
        remove(leftover)
    if not target.exists():
        remove(link)
        return
    try:
        fresh.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    except (OSError, NotImplementedError):  # no links on this file system
        shutil.copytree(target, fresh)
    is_copy = link.is_dir() and not link.is_symlink()
    if is_copy or (link.is_symlink() and not fresh.is_symlink()):  # which no rename replaces
        link.rename(old)
    fresh.replace(link)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it names) or a whole directory; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
