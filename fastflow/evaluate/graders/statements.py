"""Answers in words: "the answer is", "Final answer:", "####", a last line in bold; and reasoning left out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from fastflow.evaluate.graders.boxes import find_boxes, last_answer

_THINKING = re.compile(r"<(/?)(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_FORMS = re.compile("[\u3000\u3001\ufe50-\ufe6f\uff00-\uffef]+")
_EMPHASIS = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?![\w(\\])|`")
_ANCHOR = re.compile(
    r"(?:\b(?:answers?|result|solutions?)(?:\s+to\s+th(?:e|is)\s+\w+)?\s*(?:\}\s*)?(?:\bis\b|\bare\b|\bequals\b|:|=)"
    r"|\bfinal answer\b[*:\s]*\n\s*|<answer>|####|答案\s*(?:是|为|:|选)?|结果\s*(?:是|为|:))"
    r"(?:\s*(?:therefore|thus|so|then|simply|just|:))?\s*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"^(?:so|thus|hence|therefore|consequently|altogether|in total|所以|因此|故)\b.*?"
    r"(?:\bis\b|\bare\b|\bequals\b|\bmakes\b|\bgives\b|=|为|是)\s*(?!.*(?:\bis\b|\bare\b|\bequals\b))(.+)$",
    re.IGNORECASE | re.DOTALL,
)
_DOUBT = re.compile(
    r"\b(?:if|whether|doubt\w*|unsure|not sure|might|may|maybe|perhaps|would|could|cannot|can't|don't|suppose\w*|"
    r"assum\w*|thought|guess\w*|first considered|no|not|wrong|incorrect|another)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\s*(?:not\b|never\b|neither\b|no longer\b|n't\b|unlikely\b|不)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:[.!?;](?=[\s$)*]|$)|[。！？；])")
_REASON = re.compile(r"\s*,?\s*\b(?:since|because|as we|as it|as the|which|where|so that|according to)\b.*", re.DOTALL)
_RETRACTED = re.compile(
    r"\b(?:that|this|it|which|above|answer|box|value|result)\s+(?:is|was|must be|seems|looks)\s+(?:wrong|incorrect|not "
    r"right|not correct|false|a mistake|mistaken)\b|\bscratch that\b|\bI (?:take|took) (?:that|it) back\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*\$?\s*$")
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|mistake|sorry|oops|instead|recount\w*|recheck\w*|corrected|revis\w+|"
    r"should be|wrong|incorrect)\b|更正|不对",
    re.IGNORECASE,
)

LONGEST_SENTENCE = 1000  # characters; models that loop write sentences without end
MOST_STATEMENTS = 20  # that are looked at, from the end


def spoken(response: str) -> str:
    """The response without its reasoning in think tags; reasoning that was never closed leaves nothing."""
    kept, depth, start = list[str](), 0, 0
    for tag in _THINKING.finditer(response):
        if depth == 0:
            kept.append(response[start : tag.start()])
        if tag.group(1) and depth == 0:  # opened before the response, by the chat template
            kept = []
        depth = max(0, depth - 1) if tag.group(1) else depth + 1
        start = tag.end()
    return "".join(kept) + (response[start:] if depth == 0 else "")


def boxed_answer(text: str) -> list[str] | None:
    """What the last box says, in parts where adjoining boxes form one answer. None: no box, or it was taken back.

    A statement after the box replaces it where second thoughts stand between them.
    """
    boxes = find_boxes(text)
    if not boxes:
        return None
    chosen, rest = last_answer(boxes, text), text[boxes[-1].end :]
    if _SECOND_THOUGHT.search(rest):
        later = [clause for clause in stated(rest) if re.search(r"\d|\\[a-z]", clause)]
        if later:
            return [later[-1]]
        if _RETRACTED.search(rest):
            return None
    names = [_NAMED.search(text[max(0, box.start - 20) : box.start]) for box in chosen] if len(chosen) > 1 else [None]
    if all(names):
        return [f"{name.group(1)} = {box.content}" for name, box in zip(names, chosen, strict=True) if name]
    return [box.content for box in chosen]


def stated_answer(text: str) -> str | None:
    """What a response without a box calls its answer: the last statement, a last line in bold, or a conclusion."""
    clauses = list(stated(text))
    if clauses:
        return clauses[-1]
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or _DOUBT.search(lines[-1]):
        return None
    bold = re.fullmatch(r".*\*\*([^*]+)\*\*[.!]?", lines[-1])
    if bold:
        return bold.group(1).strip(" :")
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|(?<=。)", plain(lines[-1])) if part.strip()]
    last = sentences[-1].strip() if sentences else ""
    conclusion = _CONCLUSION.match(last) if len(last) <= LONGEST_SENTENCE else None
    return _tidy(conclusion.group(1)) if conclusion and re.search(r"\d", conclusion.group(1)) else None


def stated(text: str) -> Iterator[str]:
    """What follows each "the answer is", up to the end of its sentence; denied and doubted ones are left out."""
    text = plain(text)
    for anchor in list(_ANCHOR.finditer(text))[-MOST_STATEMENTS:]:
        start = max(text.rfind("\n", 0, anchor.start()), _last_end(text, anchor.start()))
        if _DOUBT.search(text[start + 1 : anchor.start()]) or _DENIED.match(text, anchor.end()):
            continue
        rest = text[anchor.end() : anchor.end() + LONGEST_SENTENCE].lstrip()
        line = rest.split("\n\n", 1)[0] if rest.startswith(("$$", "\\[")) else rest.split("\n", 1)[0]
        end = _SENTENCE_END.search(line)
        if end and end.group().startswith(("?", "？")):
            continue
        clause = _tidy(line[: end.start()] if end else line)
        if clause:
            yield clause


def plain(text: str) -> str:
    """The text in compatibility characters (full-width letters and digits become plain) and without emphasis."""
    return _EMPHASIS.sub("", compatible(text))


def compatible(text: str) -> str:
    """NFKC for full-width and small forms only, since it would also turn a superscript into a digit."""
    return _FORMS.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text)


def _tidy(clause: str) -> str:
    clause = re.sub(r"</answer>.*|[,，]?\s*因为.*", "", _REASON.sub("", clause), flags=re.DOTALL)
    if clause.startswith("}"):  # of a label such as \text{Answer: }
        clause = clause[1:]
    return re.sub(r"^(?:\s|:)+", "", clause).strip().strip("$").strip().rstrip(".,").strip()


def _last_end(text: str, before: int) -> int:
    first = max(0, before - LONGEST_SENTENCE)
    ends = [match.start() for match in re.finditer(r"[.!?;](?=\s)|[。！？；]", text[first:before])]
    return first + ends[-1] if ends else first - 1
