"""Answers in words: "the answer is", "Final answer:", "####", a last line in bold; and reasoning left out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_THINKING = re.compile(r"<(/?)(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_FORMS = re.compile("[\u3000\u3001\ufe50-\ufe6f\uff00-\uffef\U0001d400-\U0001d7ff]+")
_LOOK_ALIKE = str.maketrans("АВЕКМНОРСТХаеорсухΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEKMHOPCTXaeopcyxABEZHIKMNOPTX")  # Cyrillic and Greek
_LONE_LETTER = re.compile(r"(?<![\u0370-\u04ff])[АВЕКМНОРСТХаеорсухΑΒΕΖΗΙΚΜΝΟΡΤΧ](?![\u0370-\u04ff])")
_EMPHASIS = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?!-?[\w(\\])|`|(?<!\S)\*(?=[^\s*][^*\n]*\*(?!\S))|(?<=[\w:.)])\*(?!\S)")
_TAG = re.compile(r"</?(?:b|i|u|em|strong|span|p|div)\b[^<>]{0,80}>|[✅✔☑✓🎉🎯]", re.IGNORECASE)
_IS_ANSWER = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?(\S.{0,80}?)\s+"
    r"is (?:the|our|my) (?:final |correct |required |desired )?answer\W*",
    re.IGNORECASE,
)
_ANCHOR = re.compile(
    r"(?:\b(?:answers?|result|solutions?)(?:\s+to\s+th(?:e|is)\s+\w+)?\s*(?:\}\s*)?"
    r"(?:\bis\b|\bare\b|\bequals\b|\b(?:should|must|would) be\b|:|=)"
    r"|\bfinal answer\b[*:\s]*\n\s*|(?:(?<=\n)|(?<![\s\S]))[#* ]{0,8}answer[*: ]{0,8}\n\s*"
    r"|\bthe (?:final )?answer\s+(?=\$?[\d\\(-])|\bfinal answer\s*[—–-]\s*(?=[\d$\\(])|\bans\s*[.:=]"
    r"|<answer>|####|答案\s*(?:是|为|:|选)?|结果\s*(?:是|为|:)|(?<![^\s])答\s*:)"
    r"(?:\s*(?:therefore|thus|so|then|simply|just|:))?\s*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"^(?:(?:so|thus|hence|therefore|consequently|altogether|in total)\b|所以|因此|故).*?"
    r"(?:\bis\b|\bare\b|\bequals\b|\bmakes\b|\bgives\b|=|为|是|有)\s*(?!.*(?:\bis\b|\bare\b|\bequals\b))(.+)$",
    re.IGNORECASE | re.DOTALL,
)
BEHIND_REPLY = r"\s*(?:[,.!:;—–]|-(?!\w)|wait\b)"  # of "no, ..." and "no wait, ...": an answer to oneself
_DOUBT = re.compile(
    r"\b(?:if|whether|doubt\w*|unsure|not sure|might|may|maybe|perhaps|would|could|cannot|can't|don't|suppose\w*|"
    r"assum\w*|claim\w*|says|naive|false|tempting|(?<!second )thought|guess\w*|"
    rf"first considered|no(?!{BEHIND_REPLY})|not|wrong|incorrect|another)\b",
    re.IGNORECASE,
)
_BUT = re.compile(r"\s*not\s+[^.;\n]*?,?\s+but\s+(?:rather\s+)?(?=[\d$\\(-])", re.IGNORECASE)
_DENIED = re.compile(r"\s*(?:not\b|never\b|neither\b|no longer\b|n't\b|unlikely\b|不)", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“]\s*(?:the |my |our )?(?:right |correct |final )?$", re.IGNORECASE)
_CONDITIONAL = re.compile(r"\bonly (?:if|when|for)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:[.!?;](?=[\s$)*]|$)|[。！？；])")
_REASON = re.compile(
    r"\s*(?:,\s*)?\(?\b(?:since|because|as we|as it|as the|and (?:we|this|that|it|so)|which|where|so that|according to)"
    r"\b.*",
    re.DOTALL,
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


def stated_answer(text: str) -> str | None:
    """What a response without a box calls its answer: the last statement, a last line in bold, or a conclusion."""
    clauses = [statement.clause for statement in statements(plain(text))]
    if clauses:
        return clauses[-1]
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or _DOUBT.search(lines[-1]):
        return None
    bold = re.fullmatch(r".*\*\*([^*]+)\*\*(?:\s+[a-z]+){0,2}[.!]?", lines[-1])
    if bold:
        return bold.group(1).strip(" :")
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|(?<=。)", plain(lines[-1])) if part.strip()]
    last = sentences[-1].strip() if sentences else ""
    conclusion = (_IS_ANSWER.fullmatch(last) or _CONCLUSION.match(last)) if len(last) <= LONGEST_SENTENCE else None
    return tidy(conclusion.group(1)) if conclusion and re.search(r"\d", conclusion.group(1)) else None


@dataclass(frozen=True)
class Statement:
    """An anchor such as "the answer is" from `start` on, what its sentence says before, and the clause behind it."""

    start: int
    before: str
    anchor: str
    clause: str


def statements(text: str) -> Iterator[Statement]:
    """What follows each anchor, up to the end of its sentence; denied and doubted ones are left out.

    text: plain.
    """
    for anchor in list(_ANCHOR.finditer(text))[-MOST_STATEMENTS:]:
        start = max(text.rfind("\n", 0, anchor.start()), _last_end(text, anchor.start()))
        but = _BUT.match(text, anchor.end())
        before = text[start + 1 : anchor.start()]
        if _DOUBT.search(before) or _QUOTED.search(before) or (not but and _DENIED.match(text, anchor.end())):
            continue
        begin = but.end() if but else anchor.end()
        rest = text[begin : begin + LONGEST_SENTENCE].lstrip()
        line = rest.split("\n\n", 1)[0] if rest.startswith(("$$", "\\[")) else rest.split("\n", 1)[0]
        end = _SENTENCE_END.search(line)
        if end and end.group().startswith(("?", "？")):
            continue
        clause = tidy(line[: end.start()] if end else line)
        if clause and not _CONDITIONAL.search(clause):
            yield Statement(anchor.start(), before, anchor.group(), clause)


def plain(text: str) -> str:
    """The text in compatibility characters (full-width letters and digits become plain) and without emphasis."""
    return _EMPHASIS.sub("", _TAG.sub("", compatible(text)))


def compatible(text: str) -> str:
    """NFKC for full-width and small forms only, since it would also turn a superscript into a digit."""
    text = _FORMS.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text)
    return _LONE_LETTER.sub(lambda letter: letter.group().translate(_LOOK_ALIKE), text)


def tidy(clause: str) -> str:
    """A clause without reasons, quotation marks, dollar signs and marks at its ends."""
    clause = re.sub(r"</answer>.*|[,，]?\s*因为.*", "", _REASON.sub("", clause), flags=re.DOTALL)
    if clause.startswith("}"):  # of a label such as \text{Answer: }
        clause = clause[1:]
    clause = re.sub(r"\s*\((?:see|cf|as|by|from|since|because)\b[^()]*\)$|,?\s*\b(?:i\.e|e\.g)\b.*$", "", clause)
    return re.sub(r"^(?:\s|:)+", "", clause).strip().strip('"“”').strip("$").strip().rstrip(".,").strip()


def _last_end(text: str, before: int) -> int:
    first = max(0, before - LONGEST_SENTENCE)
    ends = [match.start() for match in re.finditer(r"[.!?;](?=\s)|[。！？；]", text[first:before])]
    return first + ends[-1] if ends else first - 1
