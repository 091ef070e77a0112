"""Judges one hostile input at the command line, in this process: it is refused in one sentence, or it works."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from fastflow import cli
from fastflow.config import yaml_file
from fastflow.config.reader import read_config, to_yaml
from fastflow.demo.small_model import make_tokenizer
from hostile_data import DataCase
from hostile_settings import FILE, SettingsCase, make_places
from small_models import save_model

LONGEST_CASE = 20.0  # seconds
SHORT = ("--rollout.max_response_tokens", "4")  # responses that fit into the context
LONGEST_MESSAGE = 4000  # characters
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<go>{% if enable_thinking %}!{% endif %}{% endif %}"
)


class Hang(BaseException):
    """A case took too long. Not an Exception: nothing in between may take it for one of its own."""


@dataclass(frozen=True)
class Fault:
    """kind: the same for all cases that fail at the same place."""

    kind: str
    details: str


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hang after that time; end the process, with its stack, where it does not come back to Python at all."""

    def stop(*_: object) -> None:
        raise Hang

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(10 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, earlier)


class CaseJudge:
    """Runs cases as dry runs on tiny models in `home`."""

    def __init__(self, home: Path, seconds: float = LONGEST_CASE):
        self._home, self._seconds = home, seconds
        self.accepted = 0
        yaml_file.LONGEST_SILENCE = 0.1  # a pipe without a writer is a case, too
        save_model(home / "raw")
        chat = make_tokenizer(["<user>", "<assistant>", "<system>", "<go>", *"abcdefghij 0123456789.!"])
        chat.chat_template = TEMPLATE
        save_model(home / "chat")
        chat.save_pretrained(home / "chat")
        (home / "fine.jsonl").write_text('{"prompt": "ab"}\n')
        (home / "places").mkdir()
        self._places = make_places(home / "places")

    def settings(self, case: SettingsCase) -> Fault | None:
        path = self._places[case.path] if case.path else str(self._home / "case.yaml")
        if case.file is not None:
            Path(path).write_bytes(case.file)
        arguments = [path if argument == FILE else argument for argument in case.arguments]
        fixed = ["--model.path", str(self._home / "raw"), "--data.path", str(self._home / "fine.jsonl")]
        return self._judge([*fixed, *SHORT, "--dry-run", *arguments], reads_back=True)

    def data(self, case: DataCase) -> Fault | None:
        path = self._home / f"case{case.suffix}"
        path.write_bytes(case.content)
        model = self._home / ("chat" if case.chat else "raw")
        fixed = ["--model.path", str(model), "--data.path", str(path)]
        return self._judge([*fixed, *SHORT, "--dry-run", *case.options])

    def _judge(self, arguments: list[str], *, reads_back: bool = False) -> Fault | None:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
        handlers = logging.getLogger().handlers[:]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), at_most(self._seconds):
                code = _code(["train", *arguments])
        except Hang:
            return Fault("hang", f"took over {self._seconds:g} s, in {_place(sys.exc_info()[2])}")
        except Exception as error:
            return Fault(f"{type(error).__name__} in {_place(error.__traceback__)}", traceback.format_exc())
        finally:
            logging.getLogger().handlers[:] = handlers
        said, told = (stream.buffer.getvalue().decode() for stream in (out, err))
        return self._check(code, said, told, reads_back and not {"-h", "--help"} & set(arguments))

    def _check(self, code: object, said: str, told: str, reads_back: bool) -> Fault | None:
        if code not in (0, 2):
            return Fault(f"exit code {code}", told)
        if "Traceback" in told:
            return Fault("a traceback", told)
        if CONTROL.search(said.replace("\n", "")) or CONTROL.search(told):
            return Fault("control characters", repr(said + told))
        if code == 2:
            last = told.splitlines()[-1] if told else ""
            if not last.startswith("fastflow: error: "):
                return Fault("a refusal without a sentence", told)
            return Fault("a refusal too long to read", told) if len(last) > LONGEST_MESSAGE else None
        self.accepted += 1
        if reads_back:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8", dir=self._home) as file:
                file.write(said)
                file.flush()
                try:
                    again, _ = read_config(["--config", file.name])
                except Exception as error:
                    return Fault("printed settings that cannot be read", f"{error}\n{said}")
            if yaml.safe_load(said) != yaml.safe_load(to_yaml(again)):
                return Fault("printed settings that read differently", said)
        return None


def _code(arguments: list[str]) -> object:
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


def _place(trace) -> str:
    """The innermost line of our packages, and the innermost of all."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "/fastflow/" in frame.filename]
    named = [f"{Path(frame.filename).name}:{frame.name}" for frame in (*ours[-1:], frames[-1])]
    return " > ".join(dict.fromkeys(named))
