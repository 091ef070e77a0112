"""What stands behind a box: an answer in its place, an admission that it is wrong, or only remarks.

Most of it is remarks: a check, a common mistake, another case, a request. In doubt the box counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastflow.evaluate.graders.boxes import find_boxes, last_contents
from fastflow.evaluate.graders.statements import BEHIND_REPLY, LONGEST_SENTENCE, Statement, plain, statements, tidy

_CLOSING = re.compile(r"\A[\s}.,]*(?:\$\$?|\\[)\]])")  # of the formula that the box stands in
_DOUBTS = (
    rf"wait|hold on|actually|hmm+|oh|oops|sorry|apologies|I apologi[sz]e|no(?={BEHIND_REPLY}|\s*$)|"
    r"correction|edit(?=:)|update(?=:)|(?:on )?second thoughts?|"
    r"(?:up)?on (?:further |closer )?(?:review|reflection|inspection)|"
    r"(?:let me )?(?:re-?check\w*|double[ -]?check\w*|re-?count\w*|revis\w+)|"
    r"let me re-?(?:calculat|comput|consider|think|examin|evaluat|assess|read|do|solve|trace|verif|work)\w*|更正|不对"
)
_DOUBT = re.compile(rf"\b(?:{_DOUBTS})(?!\w)", re.IGNORECASE)
_LINKS = "so|thus|hence|therefore|then|and|but|now|well"
_OPENING = re.compile(rf"(?:[^\w\\$]|(?:{_DOUBTS}|{_LINKS})(?!\w))*", re.IGNORECASE)
_OPENS_STATEMENT = re.compile(
    rf"(?:\W|(?:{_DOUBTS}|{_LINKS}|finally|overall|consequently|in conclusion|in summary|as a result|"
    r"the|my|our|your|correct(?:ed)?|right|final|real|actual|true|new|updated|that|"
    r"I (?:get|find|think|believe))(?!\w))*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"(?:[.!?;](?=[\s$)*]|$)|[。！？；\n]|,?\s(?:[—–-]\s|but\s)?(?=(?:[Ww]ait|[Oo]ops|[Ss]cratch that)\b))+"
)
_WRONG = r"(?:wrong|incorrect|false|mistaken|a mistake|not (?:right|correct|true))"
_STARTS_WRONG = re.compile(_WRONG, re.IGNORECASE)
_ENDS = r"(?=\s*(?:[^\w\s(]|$|(?:because|since|as|so|and|but|after|by)\b))"
_SEEN = r"(?:I (?:now |just )?(?:reali[sz]e|see|notice|think|believe|fear)d?(?: now)?(?: that)? )?"
_THIS_IS_WRONG = re.compile(
    rf"{_SEEN}(?:(?:that|this|it)(?:['’]s| is| was| must be| seems| looks) {_WRONG}|"
    rf"(?:that|this|it) (?:isn['’]t|cannot be|can['’]t be) (?:right|correct|true)){_ENDS}",
    re.IGNORECASE,
)
_ANSWER_IS_WRONG = re.compile(
    rf"{_SEEN}(?:the|my|this|that)\s+(?:\w+ )?(?:answer|box|value|result|above)(?: above)?\s+"
    rf"(?:is|was|must be|seems|looks) {_WRONG}{_ENDS}",
    re.IGNORECASE,
)
_MY_ANSWER_IS_WRONG = re.compile(
    r"\b(?:my|the (?:above|boxed|previous|final))\s+(?:answer|box|result)\s+(?:is|was|must be|seems|looks) "
    rf"{_WRONG}{_ENDS}",
    re.IGNORECASE,
)
_NOT_MENDED = (  # unlike "I misread it at first, but now it is right"
    r"(?:(?=.*\b(?:answer|(?:should|must) be)\b)|(?!.*\b(?:at first|initially|earlier)\b.*\bbut\b))"
)
_ADMITTED = re.compile(
    rf"scratch that\b|{_SEEN}I (?:(?:take|took) (?:that|it) back\b|was (?:wrong|mistaken|incorrect)\b(?! to\b)|"
    r"(?:have |had |just )?(?:misread|misunderstood|"
    r"miscounted|miscalculated|forgot(?! to (?:mention|say|add|note))|overlooked|"
    rf"made (?:a|an) (?:\w+ )?(?:mistake|error|slip))\b(?! nothing\b)){_NOT_MENDED}",
    re.IGNORECASE | re.DOTALL,
)
_BOX_IS_WRONG = re.compile(rf"\W*(?:is|was) (?:{_WRONG}|not the (?:\w+ )?answer){_ENDS}", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:if|when|whether|unless|let me know|tell me|any|other|think|thinks|thought|suppose\w*|assum\w*|claim\w*|"
    r"says?|would|could|may|might|why|who|not|no)\b",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"(?:^|[,:—–-]\s*(?:and |so |but )?)(?:it|this|that|which) (?:should|must) (?:really |actually )?be\s+"
    r"(?P<answer>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_CORRECTION = re.compile(r"\bcorrection\s*:\W*$", re.IGNORECASE)
_FINAL = re.compile(r"\b(?:my|final|correct(?:ed)?|revised|updated) answer\b", re.IGNORECASE)
_FORMULA = re.compile(r"(?:[A-Za-z]\w?\s*=\s*)?[$({\[|+-]*(?:\d|\\[a-z]|[a-z]\b(?!\s*\)|\$?\s+[A-Za-z]{2,}))")
_ANSWER = re.compile(r"answer|\bans\b|答", re.IGNORECASE)
_WORD = re.compile(r"\w")
_NUMBERED = re.compile(r"\d|\\[a-z]")
MOST_WORDS = 4  # of an answer without a number


@dataclass(frozen=True)
class SecondThought:
    """replacement: the answer in place of the box. is_retracted: the box was called wrong, with or without another."""

    replacement: str | None = None
    is_retracted: bool = False


@dataclass(frozen=True)
class _Turn:
    """A sentence that goes back on the box. is_admission: it calls the box wrong. answer: what it says instead."""

    start: int
    is_admission: bool = False
    answer: str = ""


def boxed_answer(text: str) -> list[str] | None:
    """What the last box says, or what takes its place. None: no box, or it was taken back."""
    thought = _about_last_box(text)
    if thought.replacement is not None:
        return [thought.replacement]
    return None if thought.is_retracted else last_contents(text)


def is_taken_back(text: str) -> bool:
    """Whether the text has a box and calls it wrong."""
    return _about_last_box(text).is_retracted


def _about_last_box(text: str) -> SecondThought:
    boxes = find_boxes(text)
    return second_thought(text[boxes[-1].end :]) if boxes else SecondThought()


def second_thought(rest: str) -> SecondThought:
    """What the text behind the last box makes of it."""
    text = _CLOSING.sub("", plain(rest))
    events: list[_Turn | Statement] = sorted([*_turns(text), *statements(text)], key=lambda event: event.start)
    found, doubted, admitted = SecondThought(), False, False
    for event in events:
        if isinstance(event, _Turn):
            doubted, admitted = True, admitted or event.is_admission
            if event.answer:
                found = SecondThought(event.answer, admitted)
            elif event.is_admission:
                found = SecondThought(is_retracted=True)
        elif _replaces(event, doubted, admitted):
            found = SecondThought(event.clause, admitted)
    return found


def _replaces(said: Statement, doubted: bool, admitted: bool) -> bool:
    """Whether a statement takes the place of the box: it opens its sentence, unless the box was called wrong."""
    opens = bool(_OPENS_STATEMENT.fullmatch(said.before))
    if admitted:
        return bool(_NUMBERED.search(said.clause)) or (opens and _is_in_few_words(said))
    if not opens or not _FORMULA.match(said.clause):
        return False
    if _FINAL.search(said.before + said.anchor):
        return True
    return doubted and bool(_ANSWER.search(said.anchor))


def _is_in_few_words(said: Statement) -> bool:
    """Whether it says "the answer is Paris", and not "the answer is wrong" or what one knows of the answer."""
    is_short = len(said.clause.split()) <= MOST_WORDS
    return is_short and bool(_ANSWER.search(said.anchor)) and not _STARTS_WRONG.match(said.clause)


def _turns(text: str) -> Iterator[_Turn]:
    admitted_before = doubted = False
    if _BOX_IS_WRONG.match(text):
        admitted_before = True
        yield _Turn(0, is_admission=True)
    for number, (start, sentence) in enumerate(_sentences(text)):
        opening = _OPENING.match(sentence)
        begin = opening.end() if opening else 0
        hesitates = bool(_DOUBT.search(sentence[:begin]))
        doubted = doubted or hesitates
        admission = _admission(sentence, begin, may_be_this=doubted or number == 0)
        answer = ""
        if admission or admitted_before or hesitates:
            answer = _correction(sentence, begin, anywhere=admission)
        if admission or answer or hesitates:
            yield _Turn(start, admission, answer)
        admitted_before = admission or (hesitates and begin == len(sentence))


def _admission(sentence: str, begin: int, *, may_be_this: bool) -> bool:
    """Whether a sentence says that the box is wrong. "This is wrong" may be said of something in between."""
    if _ADMITTED.match(sentence, begin) or _ANSWER_IS_WRONG.match(sentence, begin):
        return True
    if may_be_this and _THIS_IS_WRONG.match(sentence, begin):
        return True
    named = _MY_ANSWER_IS_WRONG.search(sentence, begin)
    return bool(named) and not _UNSURE.search(sentence, begin, named.start() if named else begin)


def _correction(sentence: str, begin: int, *, anywhere: bool) -> str:
    """The answer of "it should be 8" and "Correction: 8"; "" where the sentence gives none."""
    body = sentence[begin:]
    if _CORRECTION.search(sentence[:begin]) and _FORMULA.match(body):
        return tidy(body)
    found = (_CORRECTED.search if anywhere else _CORRECTED.match)(body)
    answer = tidy(found.group("answer")) if found else ""
    return answer if _FORMULA.match(answer) else ""


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for end in _SENTENCE.finditer(text):
        if _WORD.search(text, start, end.start()):
            yield start, text[start : min(end.start(), start + LONGEST_SENTENCE)]
        start = end.end()
    if _WORD.search(text, start):
        yield start, text[start : start + LONGEST_SENTENCE]
