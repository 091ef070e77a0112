"""Whether a rank hangs: what one rank concludes from the signs that all of them give.

A rank that gives no sign is stopped, or something keeps Python from running in it. A rank that gives signs and does not
move on is stuck, or works for long: which of the two, only a limit can say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SILENT_SECONDS = 20.0
PATIENT_SECONDS = 600.0
COMING_SECONDS = 180.0
MULTIPLE = 3  # of the longest that the run has stood still and gone on


@dataclass(frozen=True)
class Sign:
    """What a rank tells of itself about once a second.

    number: of the sign. place, steps, is_patient: see Pulse. at: the line that its main thread is in. waits: whether
    that is inside a collective. has_left: whether it is at its end. attended: see Pulse; with the pieces of files that
    it has moved.
    """

    rank: int
    number: int
    place: int
    steps: int
    is_patient: bool
    at: str
    waits: bool
    pid: int
    host: str
    has_left: bool = False
    attended: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Sign:
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Hang:
    """The ranks that hang, and a sentence on it. is_silent: whether they give no sign."""

    ranks: list[int]
    sentence: str
    is_silent: bool


class Outlook:
    """Counts how long each rank is silent, and how long no rank has moved on.

    least: seconds of standing still that are never a hang. Time in which this process itself did not run does not
    count: whoever stops all ranks for a while may let them go on.
    """

    def __init__(self, least: float):
        self._least = least
        self._silent_after = min(SILENT_SECONDS, least)
        self._last: list[Sign] = []
        self._silent: list[float] = []
        self._still = 0.0
        self._longest = 0.0
        self._awaited = 0.0

    def after(self, seconds: float, signs: Sequence[Sign]) -> Hang | None:
        """Take in the ranks' newest signs, so long after those before. Returns the hang, where there is one."""
        if not self._last:
            self._last, self._silent = list(signs), [0.0] * len(signs)
            return None
        pairs = list(zip(self._last, signs, strict=True))
        self._silent = [
            silent + seconds if before.number == now.number else 0.0
            for silent, (before, now) in zip(self._silent, pairs, strict=True)
        ]
        if any(before.place != now.place or before.steps != now.steps for before, now in pairs):
            if all(sign.steps for sign in signs):
                self._longest = max(self._longest, self._still)
            self._still = 0.0
        elif any(before.attended != now.attended for before, now in pairs):
            self._still = 0.0  # this is no standstill, and says nothing about how long one may take
        else:
            self._still += seconds
        self._last = list(signs)
        return self._silence() or self._standstill()

    def without(self, seconds: float, missing: Sequence[int]) -> Hang | None:
        """Take in that some ranks have given no sign yet, so long after the last look. Returns the hang, where they
        are overdue.
        """
        self._awaited += seconds
        if self._awaited < COMING_SECONDS:
            return None
        names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        sentence = (
            f"{names} did not come within {COMING_SECONDS:.0f} seconds; the process is stopped, its machine is gone, "
            "or it reads its packages from a disk that does not answer"
        )
        return Hang(list(missing), sentence, is_silent=True)

    @property
    def limit(self) -> float:
        """Seconds of standing still that are a hang. The first step tells how long others take."""
        usual = max(self._least, MULTIPLE * self._longest)
        is_patient = any(sign.is_patient for sign in self._behind())
        return max(PATIENT_SECONDS, usual) if is_patient else usual

    def _silence(self) -> Hang | None:
        """Nobody is ended for a silence that keeps nobody from moving on."""
        if self._still < self._silent_after:
            return None
        found = [
            sign
            for sign, silent in zip(self._last, self._silent, strict=True)
            if silent >= self._silent_after and not sign.has_left
        ]
        if not found:
            return None
        sentence = (
            f"{_hang(found)}: no sign for {self._silent_after:.0f} seconds (last in {found[0].at}), and "
            "the others wait; the process is stopped, its machine is gone, or native code in it does not return"
        )
        return Hang([sign.rank for sign in found], sentence, is_silent=True)

    def _standstill(self) -> Hang | None:
        if self._still < self.limit or any(sign.has_left for sign in self._last):
            return None
        behind, limit = self._behind(), self.limit
        if all(sign.waits for sign in self._last):
            sentence = (
                f"all ranks wait for each other since {limit:.0f} seconds (rank 0 is in {self._last[0].at}); check the "
                "network between them (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name its interface), and that all "
                "have the same settings"
            )
        else:
            sentence = (
                f"{_hang(behind)}: nothing has moved on for {limit:.0f} seconds (now in {behind[0].at})"
                f"{', and the others wait' if len(behind) < len(self._last) else ''}; raise run.hang_after where that "
                "may take so long"
            )
        return Hang([sign.rank for sign in behind], sentence, is_silent=False)

    def _behind(self) -> list[Sign]:
        """The ranks that the others wait for; all of them, where nobody is behind."""
        first = min(sign.place for sign in self._last)
        last = [sign for sign in self._last if sign.place == first]
        return [sign for sign in last if not sign.waits] or last


def _hang(signs: Sequence[Sign]) -> str:
    return f"{' and '.join(map(str, signs))} hang{'s' * (len(signs) == 1)}"
