"""The grader `choice`: the letter of an option, told from the article A, the pronoun I and letters of formulas."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any

from fastflow.errors import FastflowError
from fastflow.evaluate.graders.algebra.answer import Quantity
from fastflow.evaluate.graders.algebra.equivalence import same
from fastflow.evaluate.graders.algebra.latex import normalise
from fastflow.evaluate.graders.algebra.read import read
from fastflow.evaluate.graders.boxes import find_boxes
from fastflow.evaluate.graders.second_thoughts import is_taken_back
from fastflow.evaluate.graders.statements import LONGEST_SENTENCE, MOST_STATEMENTS, plain, spoken
from fastflow.evaluate.graders.verdict import Verdict, verdict_of

Choices = Mapping[str, str]
Said = tuple[int, set[str]]  # where a statement begins, and its letters

LETTERS = string.ascii_uppercase  # of options, in order
LONGEST_LIST = 30  # characters of a text that is nothing but letters
LONGEST_ASIDE = 60  # characters in front of "answer" that may say which answer is meant
LONGEST_FORMULA = 200  # characters of a boxed formula that is compared with the options by value

_ANCHOR = re.compile(
    r"(?:\b(?:answers?|options?(?!\s*:\s)|option(?=\s*:)|choices?(?!\s*:\s)|choice(?=\s*:)|selection|letter)\s*"
    r"(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|\bmust be\b|:|=)"
    r"|\b(?:i (?:choose|pick|select|meant)|(?:i(?:['’]d| would| will|['’]ll)?|we) (?:choose|pick|select|go with)"
    r"|choose|select|pick)\b(?:\s+option)?"
    r"|\banswer\s*(?:-|–|→|=>)|<answer>|答案\s*(?:应该)?(?:是|为|选|:)?|选项(?=\s*[A-Z])"
    r"|(?:应该?|故|所以)?选(?:择|项)?\s*(?:是|为|:)?|####)\s*",
    re.IGNORECASE,
)
_CONCLUDING = re.compile(
    r"(?:^|[.,;:!?。，；\n]|\bbut )[ \t]*"
    r"(?:(?:so|thus|hence|therefore|but|and|then|no|yes|actually)\b[,:;]?[ \t]*){0,8}"
    r"(?:(?:I am|I'm)\s+(?:sure|certain|confident)\s+(?:that\s+)?)?"
    r"(?:(?:it|this|that)(?:['’]s|\s+is|\s+(?:must|has to|should) be)\s+"
    r"|(?<=so )|(?<=so, )|(?<=thus )|(?<=thus, )|(?<=hence )|(?<=hence, )|(?<=therefore )|(?<=therefore, )|(?<=no: )"
    r"|(?<=[?] no, )|(?<=[?] no\. ))"
    r"(?:option\s+)?[(\[]?(?-i:(?P<letter>[A-Z]))[)\]]?[ \t]*(?=[.!;。\n]|$)",
    re.IGNORECASE,
)
_CHINESE_IS = re.compile(r"(?<![A-Za-z])([A-Z])\s*(?:选项|项)?\s*(?:是|为)?\s*(?:正确|对的)")
_OPTION_IS = re.compile(
    r"(?:^|[.,;:!?(\"']|\b(?i:option|choice|answer|statement|so|thus|hence|therefore|that|think|believe|say|but|and|"
    r"then|conclude|reflection|review|now|clearly|indeed|only)\b)[ \t]*\(?(?<![\w\\])([A-Z])\)?"
    r"\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best|answer|only)\b"
    r"(?! (?:only|if|when|for|in)\b)(?! to (?!(?:the|this) question))|\b[Oo]ption\s+\(?([A-Z])\)?\s+is\s+true\b",
    re.MULTILINE,
)
_CHANGED = re.compile(
    rf"\b(?:change|switch|revise|correct)\b[^.!?\n]{{0,{LONGEST_SENTENCE}}}?\bto\s+"
    r"(?:option\s+)?[(\[]?([A-Z])[)\]]?(?=\s*(?:[.!;,\n]|$))"
)
_LAST_WORDS = re.compile(
    r"(?:\b(?:option|choice)\s*|\bleaves(?: us with| only)?\s+|\bonly\s+(?=\S+ remains)|\bdefinitely\s+"
    r"|\bI(?:'ll|’ll| will) say\s+|"
    r"(?<!不)是\s*)[(\[]?(?-i:([A-Z]))[)\]]?(?: remains)?\W*$",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:not|wrong|incorrect|false|excluded?|eliminated?|rule[sd]? out|neither|cannot|can't)\b|n't\b", re.IGNORECASE
)
_FIRST_WORD = re.compile(r"^[(\[]?([A-Z])[)\]]?(?:!|,?\s+(?:because|since|as)\b)")
_DOUBTED = re.compile(
    r"\b(?:if|unless|whether|thought|suppose|says|claims?|claimed|prompt|user|grader|gold)\b|"
    r"\b(?:students?|people|others|many|some|one)\s+(?:\w+\s+)?(?:think|say|believe|claim|choose|guess|assume|might|may|would)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"\b(?:wrong|incorrect|false|worst|weakest|poorest|least|other|opposite|eliminated|excluded|rejected|discarded|"
    r"tempting|common|popular|unlikely|implausible|(?:second|next)[- ]best)"
    r"(?:\s+(?!(?:the|my|correct|right|best|final)\b)\w+){0,2}\s*$",
    re.IGNORECASE,
)
_IF_WRONG = re.compile(r"\b(?:if|unless)\b[^;]*\b(?:wrong|incorrect|false|mistaken)\b[^;]*$", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:but|though|although|or|and)\b[^.;]*?(?<![A-Za-z])([A-Z])(?![A-Za-z])[^.;]*?"
    r"\b(?:is|seems|may|might|could|would)\s+(?:also|equally|just as|be)\b"
)
_RANGE = re.compile(r"^[(\[]?([A-Z])[)\]]?\s*(?:to|through|–|—|-)\s*[(\[]?([A-Z])[)\]]?(?![A-Za-z])")
_END = re.compile(r"[.!?](?=\s|$)(?<![A-Z][.])|[。！？；\n]|[.](?=\s+[A-Z][a-z]+\s)")
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bcannot(?: be)?|\bcan not be|\bnever|\bneither|\bnor|\brather than|"
    r"\b(?:any\w*|all|every\w*) but|\binstead of|\bexcept|"
    r"\bexclude[sd]?|\beliminate[sd]?|\brule[sd]? out|\bunlike|\bthan|\bnot be|不是|不选|排除)"
    r"\s*(?:option\s*|be\s*|either\s*)?[(\[\"']*$",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(
    r"\s*(?:$|[(.,;:!?)【】|<+\]}/=。，；：）\"'—–]|-(?![A-Za-z])|"
    r"\b(?:because|since|as|for|which|and|or|but|by|due|given|rather|not|with|where|is|was|that)\b|[项对正或和与])"
)
_AND = re.compile(
    r"\s*\(?\s*(?:/|,|\+|\bas well as\b"
    r"|\bor\b|\band\b|&|或|和|与|、|[;|](?=\s*[(\[]?[A-Z][)\]]?\s*$)|;(?=\s*(?:maybe|possibly|perhaps)))"
    r"\s*(?:(?:or|and|maybe|possibly|perhaps|also|even|probably|option)\s+)*[(\[]?([A-Z])[)\]]?"
    r"(?![A-Za-z0-9_'’])(?!\s+[a-z])"
)
_CONCLUDED = re.compile(
    r"(?:so|thus|hence|therefore)\b,?\s*(?:it is|it's|option)?\s*[(\[]?([A-Z])[)\]]?\.?", re.IGNORECASE
)
_LABELLED = re.compile(
    r"^(?:option\s+|choice\s+|answer\s*:?\s*)?[(\[]?([A-Za-z])[)\]]?\s*(?:[.:)、—–]|-(?![A-Za-z])|$)\s*(.*)$",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[^.,;:!?。，；！？\n]*[?？](?!\s*(?:(?:yes|indeed|right|correct)\b|是的|对))", re.IGNORECASE)
_LIST = re.compile(  # each blank has one place only, otherwise what is no list takes exponential time
    r"[(\[]?[A-Z][)\]]?(?:\s*(?:(?:[,/&;]|and|or)\s*)?[(\[]?[A-Z][)\]]?)+"
)
_WRAPPER = re.compile(
    r"\\(?:textbf|textit|textrm|text|mathrm|mathbf|mbox|operatorname|bf|rm)\s*\{?|[{}$]|\\[()\[\]]|\\[,;: !]"
)


def as_choices(place: str, field: str, value: Any) -> dict[str, str]:
    """Return options by letter, from an object or a list. Raises FastflowError for anything else."""
    if isinstance(value, list) and 2 <= len(value) <= len(LETTERS):
        value = dict(zip(LETTERS, value, strict=False))
    if not isinstance(value, dict) or len(value) < 2:
        raise FastflowError(
            f"{place}: field {field!r} must hold at least 2 options, as an object of letters and texts or as a list"
        )
    if no_letters := [letter for letter in value if letter not in LETTERS or len(letter) != 1]:
        raise FastflowError(f"{place}: field {field!r} has the option {no_letters[0]!r}, but needs capital letters")
    return {letter: option_text(place, field, text) for letter, text in value.items()}


def option_text(place: str, field: str, value: Any) -> str:
    """Return an option as text. Raises FastflowError for null, lists and objects."""
    if not isinstance(value, (str, int, float)):
        raise FastflowError(f"{place}: field {field!r} has the option {json.dumps(value)}, but needs a text")
    return str(value)


def grade(gold: str, response: str, choices: Choices) -> Verdict:
    """The verdict on a response. gold: a letter. choices: text by letter; the response may also give the text."""
    letters = extract(response, choices)
    if letters is None:
        return Verdict.UNPARSED
    return verdict_of(bool(gold.strip()) and letters == {gold.strip().strip("().").upper()})


def extract(response: str, choices: Choices) -> set[str] | None:
    """The letters that the response answers with, of which more than one is no choice; None where it gives none.

    A box counts before statements, but for a statement behind the last box.
    """
    text = re.sub(r"(?:(?<!\.)\.{2,4}|…)\s?(?=(?:or|and)\b)", ", ", re.sub(r"~~[^~]*~~", " ", plain(spoken(response))))
    boxes = find_boxes(text)
    boxed = [(box.end, found) for box in boxes[-MOST_STATEMENTS:] if (found := _in_box(box.content, choices))]
    said, asides = _statements(text, choices)
    if boxed:
        later = [letters for place, letters in said if place > boxed[-1][0]]
        if not later and is_taken_back(text):
            return None
        return later[-1] if later else boxed[-1][1]
    if asides and (not said or len(said[-1][1]) > 1 == len(asides[-1][1])):  # "which of these is incorrect?"
        said = asides
    if said:
        return said[-1][1]
    return _last_line(text, choices)


def _in_box(content: str, choices: Choices) -> set[str] | None:
    bare = " ".join(_WRAPPER.sub(" ", content).split())
    return _whole(bare, choices) or _by_value(content, choices)


def _by_value(content: str, choices: Choices) -> set[str] | None:
    """The one option that a formula equals."""
    if not re.search(r"\d", content) or len(content) > LONGEST_FORMULA:
        return None
    answer = read(normalise(content))
    if not isinstance(answer, Quantity):
        return None
    equal = {letter for letter, text in choices.items() if same(read(normalise(text)), answer)}
    return equal if len(equal) == 1 else None


def _is_own_text(found: re.Match[str], choices: Choices) -> bool:
    """Whether nothing stands behind the letter but its own option."""
    rest = found.group(2).strip().lower().rstrip(".")
    own = " ".join(_WRAPPER.sub(" ", choices.get(found.group(1).upper(), "")).split()).lower().rstrip(".")
    return not rest or (bool(own) and rest.startswith(own))


def _whole(bare: str, choices: Choices, *, strict: bool = False) -> set[str] | None:
    """A text that is nothing but a choice: "B", "(B)", "B. argon", "argon", "B and C".

    strict: no other words than the option's own stand behind the letter.
    """
    bare = bare.strip().strip("*_<>✅✔☑ ").rstrip("。!")
    texts = {" ".join(_WRAPPER.sub(" ", text).split()).lower().rstrip("."): letter for letter, text in choices.items()}
    found = _LABELLED.match(bare)
    if found and (not strict or _is_own_text(found, choices)):
        letter, rest = found.group(1).upper(), found.group(2).strip().lower().rstrip(".")
        known = letter in choices and (found.group(1).isupper() or not rest)
        others = set(re.findall(r"\b[A-Z]\b", found.group(2))) & set(choices)
        if known and (not others or texts.get(rest) == letter):
            return {letter} if not rest or texts.get(rest, letter) == letter else {letter, texts[rest]}
    if len(bare) < LONGEST_LIST and _LIST.fullmatch(bare):
        letters = set(re.findall(r"\b[A-Z]\b", bare))
        if letters and letters <= set(choices):
            return letters
    found = re.match(r"^[(\[]?([A-Z])[)\]]?\s+(.+)$", bare)
    if found and texts.get(found.group(2).lower().rstrip(".")) == found.group(1):
        return {found.group(1)}
    letter_of_text = texts.get(bare.lower().rstrip("."))
    return {letter_of_text} if letter_of_text else None


def _statements(text: str, choices: Choices) -> tuple[list[Said], list[Said]]:
    """What the text states, in order; and what it says of a wrong, an other or the least likely answer."""
    found, asides = list[Said](), list[Said]()
    for anchor in list(_ANCHOR.finditer(text))[-MOST_STATEMENTS:]:
        rest = text[anchor.end() : anchor.end() + LONGEST_SENTENCE].lstrip()
        end = _END.search(rest)
        clause = rest[: end.start()] if end else rest
        if (end and end.group() in "?？") or _is_doubted(text, anchor.start(), anchor.group()):
            continue
        if letters := _in_clause(clause, choices):
            before = text[max(0, anchor.start() - LONGEST_ASIDE) : anchor.start()]
            (asides if _ASIDE.search(before) else found).append((anchor.start(), letters))
    for match in list(_OPTION_IS.finditer(text))[-MOST_STATEMENTS:]:
        letter: str = match.group(1) or match.group(2)
        denied = _NEGATED.search(text[: match.start()][-60:]) or _is_asked(text, match.end())
        if letter in choices and not denied:
            found.append((match.start(), {letter}))
    for pattern in (_CONCLUDING, _CHINESE_IS, _CHANGED):
        for match in list(pattern.finditer(text))[-MOST_STATEMENTS:]:
            if match.group(1) in choices and not (pattern is _CHINESE_IS and _is_asked(text, match.end())):
                found.append((match.start(1), {match.group(1)}))
    return sorted(found, key=lambda item: item[0]), asides


def _is_asked(text: str, end: int) -> bool:
    """Whether a statement that ends there is a question without the answer yes. "..., isn't it?" is none."""
    return _ASKED.match(text, end, end + LONGEST_SENTENCE) is not None


def _is_doubted(text: str, start: int, anchor: str) -> bool:
    """Whether somebody else's answer follows, or one that would be right in another case."""
    before = re.split(r"\b(?:but|however|yet)\b", _END.split(text[max(0, start - LONGEST_SENTENCE) : start])[-1])[-1]
    if not (doubt := _DOUBTED.search(before)):
        return False
    if _IF_WRONG.search(before):
        return True
    return doubt.group().lower() not in ("if", "unless") or "would" in anchor.lower()


def _in_clause(clause: str, choices: Choices) -> set[str] | None:
    bare = " ".join(_WRAPPER.sub(" ", clause.replace("\\boxed", " ")).split())
    if whole := _whole(bare, choices):
        return whole
    if (spread := _RANGE.match(bare)) and set(spread.groups()) <= set(choices):
        return set(spread.groups())
    denied: set[str] = set()
    for match in re.finditer(r"(?<![A-Za-z0-9_'’\\^=+*/-])[(\[\"']?([A-Z])[)\]\"']?(?![A-Za-z0-9_'’])", bare):
        letter = match.group(1)
        if letter in choices and _NEGATED.search(bare[: match.start()]):
            listed = re.match(r"(?:\s*(?:,|or|nor|and)\s*[(\[]?[A-Z][)\]]?(?![A-Za-z]))*", bare[match.end() :])
            denied |= {letter, *re.findall(r"[A-Z]", listed.group() if listed else "")}
        if letter not in choices or letter in denied:
            continue
        if re.search(r"\d\s*°?\s*$", bare[: match.start()]):  # 20 C
            continue
        bracketed = match.group().startswith(("(", "["))
        if not bracketed and not _stands_alone(letter, bare[match.end() :], choices):
            continue
        rest = bare[match.end() :]
        hedged = {found for found in _HEDGED.findall(rest) if found in choices}
        return {letter, *_others(rest, choices), *hedged}
    texts = {letter: text.lower().strip() for letter, text in choices.items() if len(text.strip()) > 2}
    named = {letter for letter, text in texts.items() if re.search(rf"\b{re.escape(text)}\b", bare.lower())}
    longest = {a for a in named if not any(a != b and texts[a] in texts[b] for b in named)}
    return longest if len(longest) == 1 and not _NEGATED.search(bare) and "not" not in bare.lower().split() else None


def _stands_alone(letter: str, rest: str, choices: Choices) -> bool:
    """Whether a letter is no article, pronoun or symbol: the clause ends, or its own option's text comes behind it."""
    if re.match(r"\s*(?:不|错|被|/\s*[A-Z]\s+[a-z]|(?:is|was)\s+(?:not|wrong|incorrect|false)\b|isn't\b)", rest):
        return False
    if _FOLLOWS.match(rest) and not re.match(r"\s*=", rest):
        return not (letter == "I" and re.match(r"\s*(?:was|is not)\b", rest))
    text = " ".join(choices[letter].split()).lower()
    behind = rest.strip()
    return bool(text) and behind.lower().startswith(text) and bool(_FOLLOWS.match(behind[len(text) :]))


def _others(rest: str, choices: Choices) -> set[str]:
    """Further letters that are offered in the same breath."""
    letters = set()
    while match := _AND.match(rest):
        if match.group(1) not in choices or re.match(r"\s*(?:,|and)\s*not\b", rest):
            break
        letters.add(match.group(1))
        rest = rest[match.end() :]
    return letters


def _last_line(text: str, choices: Choices) -> set[str] | None:
    """A response whose last line, or first word, is a choice."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    meant = [_whole(" ".join(_WRAPPER.sub(" ", line).split()), choices, strict=True) for line in lines[-9:] + lines[:1]]
    named = {frozenset(letters) for letters in meant if letters}
    if len(named) > 2:  # the options, written down again
        return None
    if letters := meant[-2] or meant[-1]:
        return letters
    if (concluded := _CONCLUDED.fullmatch(lines[-1])) and concluded.group(1) in choices:
        return {concluded.group(1)}
    sentence = re.split(r"[.!?。]\s+(?=\S)", lines[-1])[-1]
    if (last := _LAST_WORDS.search(sentence)) and last.group(1) in choices and not _REFUSED.search(sentence):
        return {last.group(1)}
    first = re.match(r"^[(\[]?([A-Z])(?:[)\].:]\s|[)\].]$)", lines[0]) or _FIRST_WORD.match(lines[0])
    rejected = re.search(r"\b(?:wrong|incorrect|false|not|excluded)\b", lines[0])
    return {first.group(1)} if first and first.group(1) in choices and len(lines) == 1 and not rejected else None
