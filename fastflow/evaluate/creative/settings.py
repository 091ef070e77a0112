"""Settings of the judge: a language model behind an OpenAI-compatible server that grades responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastflow.config.setting import Section, setting
from fastflow.errors import FastflowError

KEY_VARIABLE = "FASTFLOW_JUDGE_KEY"  # the only place that the key comes from; it is never written

OWN_FIELDS = {  # of a request's body
    "model": "use judge.model", "messages": "write a rubric, judge.rubric", "temperature": "use judge.temperature",
    "max_tokens": "use judge.max_tokens", "seed": "each vote has its own", "stream": "replies are read whole",
    "n": "use judge.votes",
}  # fmt: skip


@dataclass(frozen=True)
class JudgeConfig(Section):
    """A language model behind an OpenAI-compatible server that grades responses; its key is FASTFLOW_JUDGE_KEY."""

    address: str | None = setting(
        None, "Address with the version, such as http://127.0.0.1:8000/v1; without it nothing is judged"
    )
    model: str | None = setting(None, "Name of the judging model; without it the only model that the server lists")
    rubric: str | None = setting(None, "Rubric by name or YAML file, in place of the one that the task names")
    votes: int = setting(1, "Grades of each response; their mean counts", unit="votes", at_least=1, at_most=99)
    temperature: float = setting(0.0, "Sampling temperature of the judge; several votes need more than 0", at_least=0)
    max_tokens: int = setting(1024, "Length limit of a reply", unit="tokens", at_least=1)
    extra: Mapping[str, Any] | None = setting(
        None, "More fields of a request's body, such as {chat_template_kwargs: {enable_thinking: false}}"
    )
    responses: int = setting(
        0, "Judge only the first N responses to each prompt; 0 judges all", unit="responses", at_least=0
    )
    pairs: int = setting(
        0, "Responses to each prompt that are compared with the first model's, in both orders; 0 compares none",
        unit="pairs", at_least=0,
    )  # fmt: skip
    solutions: int = setting(
        0, "Right solutions of a question whose approaches are compared, of 2 or more; 0 compares none",
        unit="solutions", at_least=0, at_most=64,
    )  # fmt: skip
    concurrency: int = setting(16, "Requests at once", unit="requests", at_least=1, at_most=1024)
    timeout: float = setting(120.0, "Time limit of one request", unit="seconds", above=0)
    attempts: int = setting(
        6, "Tries of a request to a server that is busy or silent, with growing pauses", unit="tries", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.extra or {}:
            if name in OWN_FIELDS:
                raise FastflowError(f"judge.extra sets {name}, which fastflow sets itself; {OWN_FIELDS[name]}")
        if self.address is None:
            for name in self.changed():
                raise FastflowError(f"{name} is set but judge.address is not; name the judge's server")
            return
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FastflowError(
                f"judge.address = {self.address!r} is no address; write it as in http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise FastflowError(
                f"judge.address holds a name, password or query, which the results would show; put the key into the "
                f"environment variable {KEY_VARIABLE}"
            )
        if self.votes > 1 and not self.temperature:
            raise FastflowError(
                f"judge.temperature = 0 gives {self.votes} equal votes; set --judge.temperature 0.7, or one vote"
            )
        if self.solutions == 1:
            raise FastflowError("judge.solutions = 1 leaves nothing to compare; set 2 or more, or 0")
