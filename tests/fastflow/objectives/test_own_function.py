"""Functions of the user's: how they are found, what they must take, and what is said of a wrong one."""

from __future__ import annotations

import hashlib
import sys

import pytest

from fastflow.errors import FastflowError
from fastflow.models.pulse import PULSE
from fastflow.objectives.own_function import OwnFunction, load_function

TEXTS = ["one", "two"]
SOURCES = [("here:1", {"n": 1}), ("here:2", {"n": 2})]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes the function `score` of a module with this source."""

    def make(source: str) -> OwnFunction:
        monkeypatch.delitem(sys.modules, "own_module", raising=False)
        (tmp_path / "own_module.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return OwnFunction("objective.reward", "own_module:score")

    return make


def test_it_is_called_for_each_response(own):
    assert own("def score(text, record):\n    return len(text) + record['n']").numbers(TEXTS, SOURCES) == [4, 5]


def test_with_takes_lists_it_is_called_once(own):
    source = """
calls = []
def score(texts, records):
    calls.append(texts)
    return [record["n"] / len(calls) for record in records]
score.takes_lists = True
"""
    function = own(source)
    assert function.numbers(TEXTS, SOURCES) == [1, 2]
    assert function.numbers([], []) == []
    assert function.numbers(TEXTS, SOURCES) == [0.5, 1]


def test_each_call_is_a_sign_of_life(own, monkeypatch):
    """Ranks that wait would take many slow calls for a hang."""
    works = []
    monkeypatch.setattr(PULSE, "work", lambda: works.append("work"))
    own("def score(text, record): return 1.0").numbers(TEXTS, SOURCES)
    assert works == ["work"] * len(TEXTS)


def test_the_digest_is_of_the_file(own, tmp_path):
    function = own("import functools\ndef given(limit, text, record): return 1.0\nscore = functools.partial(given, 3)")
    assert function.digest() == hashlib.sha256((tmp_path / "own_module.py").read_bytes()).hexdigest()
    assert own("exec('def score(text, record): return 1.0')").digest() == ""
    source = "class Score:\n    def __call__(self, text, record): return 1.0\nscore = Score()"
    assert own(source).digest() == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1.0", r"returned 1\.0 for 2 responses; with takes_lists"),
        ("return [1.0]", "returned 1 value for 2 responses; with takes_lists"),
        ("return [1.0, 'a']", "returned 'a' for 'two', a response to here:2; it must return a finite number"),
        ("return [1.0, None]", "returned None for 'two'"),
        ("raise KeyError('x')", r"raises KeyError: 'x' \(.*own_module.py:1\) for 'one', a response to here:1"),
        ("raise SystemExit(0)", "raises SystemExit: 0"),
    ],
)
def test_lists_that_do_not_fit(own, body, words):
    with pytest.raises(FastflowError, match=words):
        own(f"def score(texts, records): {body}\nscore.takes_lists = True").numbers(TEXTS, SOURCES)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def score(text): ...", r"takes \(text\), but is called with \(text, record\): too many"),
        ("def score(a, b, c): ...", r"takes \(a, b, c\), .*missing a required argument: 'c'"),
        ("def score(completions, **kwargs): ...", r"takes \(completions, \*\*kwargs\)"),
        ("def score(texts): ...\nscore.takes_lists = True", r"called with \(texts, records\)"),
        ("async def score(text, record): ...", "is an async function"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused_when_it_is_loaded(own, source, words):
    with pytest.raises(FastflowError, match=words):
        own(source)


@pytest.mark.parametrize(
    "source", ["def score(*arguments): ...", "def score(a, b, c=1): ...", "score = max", "score = dict.get"]
)
def test_a_signature_that_fits(own, source):
    own(source)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.such.module:function", "package.module:function"),
        ("fastflow.objectives.trajectory_balance:no_such_function", "no_such_function"),
        ("fastflow.objectives.trajectory_balance", "package.module:function"),
        (":function", "package.module:function"),
        ("", "package.module:function"),
        ("fastflow.objectives.trajectory_balance:OBJECTIVES", "is not callable"),
    ],
)
def test_a_function_that_cannot_be_imported(name, reason):
    with pytest.raises(FastflowError) as caught:
        load_function(name, "objective.reward")
    assert str(caught.value).startswith(f"objective.reward = {name!r}")
    assert reason in str(caught.value)


@pytest.mark.parametrize("setting", ["objective.reward", "objective.format_check"])
@pytest.mark.parametrize("place", ["of_the_user.py", "of_the_user/rewards.py"])
def test_a_module_of_the_working_directory(tmp_path, monkeypatch, setting, place):
    """It is not imported from there, and the message says what would."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("def score(text, record):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    words = f"{place.partition('/')[0]} is in the working directory, .*: start it with PYTHONPATH="
    with pytest.raises(FastflowError, match=words):
        load_function(f"{place.removesuffix('.py').replace('/', '.')}:score", setting)
    (tmp_path / "needs_more.py").write_text("import no_such_module\n")
    with pytest.raises(FastflowError, match=r"no_such_module.*write package\.module:function"):
        monkeypatch.syspath_prepend(tmp_path)
        load_function("needs_more:score", setting)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("rw.py:score", "write rw:score, and start fastflow with PYTHONPATH=."),
        ("w/rw.py:score", "write w.rw:score, and start fastflow with PYTHONPATH=."),
        ("./w/rw.py:score", "write w.rw:score, and start fastflow with PYTHONPATH=."),
        ("w/rw.py", "write w.rw:function, and start fastflow with PYTHONPATH=."),
        ("my-rewards/rw.py:score", "write rw:score, and start fastflow with PYTHONPATH=my-rewards"),
        ("../elsewhere/rw.py:score", "write rw:score, and start fastflow with PYTHONPATH=../elsewhere"),
        ("w/absent.py:score", "there is no w/absent.py either: write package.module:function"),
    ],
)
def test_a_file_where_a_module_is_asked_for(tmp_path, monkeypatch, name, asked):
    for folder in ("here", "here/w", "here/my-rewards", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rw.py").write_text("def score(text, record):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FastflowError) as caught:
        load_function(name, "objective.reward")
    assert str(caught.value).endswith(asked)
    if not asked.startswith("there"):
        module, folder = asked.removeprefix("write ").split(", and start fastflow with PYTHONPATH=")
        monkeypatch.syspath_prepend(folder)
        assert module.endswith(":function") or load_function(module, "objective.reward")("", {}) == 1.0


def test_a_function_that_can():
    from fastflow.demo.sums import is_boxed

    assert load_function("fastflow.demo.sums:is_boxed", "objective.format_check") is is_boxed
