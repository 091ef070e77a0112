r"""From the normalised text of an answer to its structure, outermost first."""

from __future__ import annotations

import re
from fractions import Fraction

from fastflow.evaluate.graders.algebra.answer import (
    Answer,
    Digits,
    Listing,
    Many,
    Matrix,
    Quantity,
    Ratio,
    Region,
    Relation,
    Words,
)
from fastflow.evaluate.graders.algebra.expression import Tree, Unreadable, parse, variables
from fastflow.evaluate.graders.algebra.letter_words import is_symbol
from fastflow.evaluate.graders.algebra.number_words import number_in_words
from fastflow.evaluate.graders.algebra.regions import read_region, region_of
from fastflow.evaluate.graders.algebra.splitting import is_wrapped, split_outside
from fastflow.evaluate.graders.algebra.units import read_unit

_REMARK = re.compile(
    r"\s*[,;]?\s*\(?«\s*,?\s*(?:for|where|when|whenever|if|with|as|since|because|which|that|such|given|provided|rounded|using|"
    r"assuming|correct|by|so|from|attained|achieved|reached|at(?!\s+(?:most|least)\b)|not|but\s+not|rather|instead|hence|thus|i\.e|e\.g)\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_DENIAL = re.compile(
    r"\W*(?:(?:which|that|this|it)\s+)?(?:(?:is|was|must be|seems)\s+)?(?:"
    r"(?:an? |the )?(?:wrong|incorrect|false|mistaken|impossible)|too (?:large|small|big|many|few|high|low)|"
    r"not (?:correct|right|true|possible|(?:the|an?) (?:\w+ )?(?:answer|solution))|at (?:most|least))\b"
    r"|.*\bat (?:most|least)\W*$",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"(?<=\S)\s*\([^()]*(?:\\ge|\\le|\\in\b|\\ne|[<>])[^()]*\)$")
_ASIDE = re.compile(
    r"(?<=\S)\s*\(\s*«\s*(?!(?:or|and|to|in base|base|wrong|incorrect|false)\b)[^()]*\)$", re.IGNORECASE
)
_ALL_OF = re.compile(r"^«\s*(?:for )?all\s*»\s*(?=[a-z]\s*(?:[<>]|\\[lgn]e\b))")
_LABEL = re.compile(
    r"^«(?![^»]*\b(?:not|least|most|less|more|between|than)\b)[^»]*(?:\b(?:is|are|equals)\s*:?\s*»|:\s*»|»\s*:)\s*(?=\S)"
)
_JOINING = re.compile(r"«\s*,?\s*(and|or|und|oder)\b\s*([^»]*)»", re.IGNORECASE)
_JOINING_WORDS = {"and": "and", "und": "and", "or": "or", "oder": "or"}
_OUTWARD = re.compile(r"(?:(?<=^)|(?<=\\cup )|(?<=\\in )|(?<=,))\s*([\[\]])([^\[\]()]+[,;][^\[\]()]+)([\[\]])")
_LEADING = re.compile(
    r"^(?:«\s*(?:the|is|are|about|exactly|共|总共|一共|possibly|perhaps|maybe|answers?|equals?|equal to|total|of|"
    r"approximately|(?:the )?(?:point|number|interval|set|pair|line)|around|roughly|values?|minimum|maximum|约|大约|it|"
    r"so|thus|therefore|a|an|it is|the answer is|the value is|either|both|only)"
    r"\s*:?\s*»\s*)+(?=\S)",
    re.IGNORECASE,
)
_BASED = re.compile(
    r"^(?:\\overline\s*\{\s*(?P<barred>[0-9A-Fa-f]+)\s*\}|\(\s*(?P<wrapped>[0-9A-Fa-f]+)\s*\)|(?P<bare>[0-9A-Fa-f]+))\s*"
    r"(?:_\s*\{?\s*\(?\s*(?:«base»\s*)?(?P<base>\d+|«[^»]*»)\s*\)?\s*\}?"
    r"|\(?\s*(?:«in»\s*)?«(?:in\s+)?base»\s*-?\s*\(?(?P<said>\d+|«[^»]*»)\)?\s*\)?"
    r"|\(?\s*«(?:in\s+)?base\s+(?P<word>\w+)»\s*\)?)$"
)
_BASE_WORDS = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16, "ternary": 3, "quaternary": 4,
               "quinary": 5, "senary": 6, "septenary": 7}  # fmt: skip
_NOTHING = re.compile(
    r"\\emptyset|⦃\s*⦄|\s*(?:there (?:is|are) )?no (?:real |integer |such )?(?:solutions?|roots?|values?)(?: exists?)?|"
    r"none|empty set|does not exist|dne|undefined|无解",
    re.IGNORECASE,
)
_RELATIONS = {"\\le ": "≤", "\\ge ": "≥", "\\ne ": "≠", "<": "<", ">": ">", "=": "="}
_NAME = re.compile(
    r"\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d[^{}]*\}|"
    r"\\?[A-Za-z]+\s*'?(?:_\s*(?:\{[^{}]*\}|\w))?\s*'?(?:\s*\([^()]*\)|\^\s*\{?-1\}?\s*\([^()]*\))?|\\(?:angle|triangle)\s.*|"
    r"[A-Za-z]{1,3}(?:\s*:\s*[A-Za-z]{1,3})+|\|\s*[A-Z]{1,2}\s*\||\\frac\s*\{\s*[A-Z]{2}\s*\}\s*\{\s*[A-Z]{2}\s*\}"
    r"|\[\s*[A-Z]{3,}\s*\]|\\[A-Za-z]+\s*\{\s*[A-Z]{1,3}\s*\}|\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)|.*«[^»]*».*"
)
_SINGLE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_BARRED = re.compile(r"\(\s*-?[\d./]+\s*\|\s*-?[\d./]+\s*\)")  # the coordinates (2|-5)
_INDEX = re.compile(r"(?<=\S)\s*,\s*\(?\s*([a-z])\s*=\s*\d+(?:\s*,\s*\d+)*\s*,\s*\\ldots(?:\s*,\s*\w+)?\s*\)?$")
_FURTHER_NUMBER = re.compile(r"(?<![\^\d.{-])(?<!\^\s)\d")  # other than the power of a unit
_STATEMENT = re.compile(r"[=<>]|\\[lgn]e\b|\\in\b")
_OTHERWISE = re.compile(r"«[^»]*\b(?:otherwise|else)\b", re.IGNORECASE)
_PIECEWISE = re.compile(
    r"«\s*(?:,\s*)?(?:if|when|for|where)\b[^»]*».*(?:[,;&]|«\s*(?:and|or)\b).*«\s*(?:if|when|for|where|otherwise|else)\b",
    re.IGNORECASE,
)
_MEMBERSHIP = re.compile(r"^\\?[A-Za-z](?:_\{?\w+\}?)?(?:\s*,\s*\\?[a-z])*\s*\\in\s*(?:\\?[ZNRQC]\b.*|«.*»)$")


def read(text: str) -> Answer:
    """The structure of an answer; what has none that is known comes back as Words."""
    text = _OUTWARD.sub(_inward, _outer(text))
    if _NOTHING.fullmatch(text.replace("«", "").replace("»", "").strip()):
        return Words("no solution")
    if text.startswith("⟦") and text.endswith("⟧"):
        return _matrix(text[1:-1])
    if counted := _counted(text):
        return counted
    if (based := _BASED.match(text)) and (digits := _digits(based)):
        return digits
    if member := re.match(r"^\\?[A-Za-z](?:_\{?\w+\}?)?\s*\\in\s*(⦃.*⦄)$", text):
        return read(member.group(1))
    if region := read_region(text):
        return region
    if parts := _parts(text):
        return parts
    if special := _scaled_matrix(text) or _transposed(text) or _wrapped(text):
        return special
    if relation := _relation(text):
        return relation
    if "\\pm" in text or "\\mp" in text:
        return Many(tuple(read(_signed(text, *signs)) for signs in ("+-", "-+")))
    return _ratio(text) or _quantity(text) or _words(text)


def _outer(text: str) -> str:
    """Without remarks, closing marks and braces around the whole."""
    while True:
        before = text
        text = text.strip().lstrip(",;:").rstrip(".,;:").strip()
        if is_wrapped(text, "{", "}"):
            text = text[1:-1]
        text = _ASIDE.sub("", _CONDITION.sub("", _INDEX.sub("", _without_remark(text))))
        text = _LEADING.sub("", _LABEL.sub("", _ALL_OF.sub("", text)))
        text = re.sub(rf"^[A-Z]\s*(?=\([^()]*[,;][^()]*\)$|{_BARRED.pattern}$)", "", text)  # the name of a point
        if "\\approx" in text:
            left, right = (part.strip() for part in text.split("\\approx", 1))
            text = right if not left or _SINGLE.fullmatch(left) else left
        if text == before:
            return text


def _without_remark(text: str) -> str:
    """Without words behind the answer, unless they tell one case from another or deny it."""
    remark = _REMARK.search(text)
    if remark is None or _is_piecewise(text):
        return text
    answer = text[: remark.start()]
    return f"{answer} «is wrong»" if answer and _denies(remark.group()) else answer or text


def _denies(remark: str) -> bool:
    """Whether words behind an answer say that it is none, or only a bound."""
    return bool(_DENIAL.match(" ".join(re.sub(r"[«»]", " ", remark).split())))


def _is_piecewise(text: str) -> bool:
    """Whether a second value with a condition of its own stands behind the first condition."""
    if _OTHERWISE.search(text):
        return True
    if not _PIECEWISE.search(text):
        return False
    pieces = [piece for _, piece in split_outside(_JOINING.sub(_joint, text), ",", ";", "«and»", "«or»") if piece]
    return any(re.match(r"(?!«)[^«]+«", piece) and not _STATEMENT.search(piece.split("«")[0]) for piece in pieces[1:])


def _parts(text: str) -> Answer | None:
    """Values with commas, "and" or "or" between them; inequalities so joined are one region."""
    joined_text = _JOINING.sub(_joint, text)
    pieces = split_outside(joined_text, "«and»", "«or»", ",", ";")
    pieces = [(mark, piece) for mark, piece in pieces if piece]
    if len(pieces) < 2:
        return read(pieces[0][1]) if pieces and pieces[0][1] != text else None
    kept = [(mark, piece) for mark, piece in pieces if not _MEMBERSHIP.match(piece)] or pieces
    if isinstance(read(kept[0][1]), Region) and any(re.search(r"\\in\s*\\[ZNQ]", piece) for _, piece in pieces):
        kept = pieces  # whole numbers between two ends are no interval
    items = [read(piece) for _, piece in kept]
    if joined := region_of(items, [mark for mark, _ in kept]):
        return joined
    if len(items) > 1 and not _is_inequality(items[0]):
        items = [items[0], *(item for item in items[1:] if not _is_condition(item, items[0]))]
    if len(items) == 1:
        return items[0]
    return Many(tuple(part for item in items for part in _single(item)))


def _single(item: Answer) -> tuple[Answer, ...]:
    """The values of a list within a list, also of "x = ±4"."""
    if isinstance(item, Relation) and item.name and isinstance(item.value, Many):
        return item.value.items
    return item.items if isinstance(item, Many) else (item,)


def _joint(found: re.Match[str]) -> str:
    """ "or", with the words behind it in a place of their own."""
    return f"«{_JOINING_WORDS[found.group(1).lower()]}»" + (f" «{found.group(2)}»" if found.group(2) else "")


def _inward(found: re.Match[str]) -> str:
    """]a, b[ as (a, b): brackets that turn away from an open end."""
    opening, inside, closing = found.groups()
    return f"{'[' if opening == '[' else '('}{inside}{']' if closing == ']' else ')'}"


def _is_inequality(item: Answer) -> bool:
    return isinstance(item, Region) or (isinstance(item, Relation) and item.operator != "=")


def _is_condition(item: Answer, main: Answer) -> bool:
    """An inequality behind a formula, about one of its variables."""
    trees = [main.tree] if isinstance(main, Quantity) else []
    if isinstance(main, Relation):
        trees = [main.left, main.right]
    names = {name for tree in trees for name in variables(tree)}
    if isinstance(item, Region):
        return item.variable in names
    return isinstance(item, Relation) and item.operator != "=" and bool(
        (variables(item.left) | variables(item.right)) & names)  # fmt: skip


def _wrapped(text: str) -> Answer | None:
    """Sets and tuples; brackets around one value only group it."""
    if is_wrapped(text, "⦃", "⦄"):
        if text[1:-1].strip() == "\\emptyset":
            return Words("set of the empty set")
        items = [read(piece) for _, piece in split_outside(text[1:-1], ",", ";", "«and»") if piece]
        return Many(tuple(part for item in items for part in (item.items if isinstance(item, Many) else (item,))))
    if not is_wrapped(text, "([]", ")]["):
        return None
    marks = ("|",) if _BARRED.fullmatch(text) else (",", ";")
    pieces = split_outside(text[1:-1], *marks)
    if len(pieces) > 1 and all(piece for _, piece in pieces):
        if "\\pm" in text or "\\mp" in text:
            return Many(tuple(read(_signed(text, *signs)) for signs in ("+-", "-+")))
        return Listing(tuple(read(piece) for _, piece in pieces), text[0], text[-1])
    if text[0] == "(" and text[-1] == ")":
        return read(text[1:-1])
    return None


def _scaled_matrix(text: str) -> Matrix | None:
    """A number in front of a matrix."""
    found = re.match(r"^([^⟦⟧=<>]+?)\s*\*?\s*⟦([^⟦⟧]*)⟧$", text)
    if not found or not _reads(found.group(1)):
        return None
    scale, matrix = parse(found.group(1)), _matrix(found.group(2))
    entries = [entry for row in matrix.rows for entry in row]
    if not all(isinstance(entry, Quantity) and entry.unit is None for entry in entries):
        return None
    return Matrix(tuple(
        tuple(Quantity(("*", scale, entry.tree), None, entry.text) for entry in row if isinstance(entry, Quantity))
        for row in matrix.rows
    ))  # fmt: skip


def _transposed(text: str) -> Matrix | None:
    """(a, b)^T, a column."""
    found = re.match(r"^([(\[].*[)\]])\s*\^\s*\{?\s*(?:T|\\top)\s*\}?$", text)
    inside = read(found.group(1)) if found else None
    return Matrix(tuple((item,) for item in inside.items)) if isinstance(inside, Listing) else None


def _relation(text: str) -> Answer | None:
    pieces = split_outside(text, *_RELATIONS)
    if len(pieces) < 2 or not all(piece for _, piece in pieces):
        return None
    operators = [_RELATIONS[mark] for mark, _ in pieces[1:]]
    if set(operators) != {"="} and len(operators) > 1:
        return None  # a chain with inequalities is a region, which was looked for before
    left, right = pieces[0][1], pieces[-1][1]
    if operators[0] != "=":
        return Relation(parse(left), operators[0], parse(right)) if _reads(left) and _reads(right) else None
    if not _NAME.fullmatch(left) and _NAME.fullmatch(right) and len(pieces) == 2:
        left, right = right, left
    name = left if _NAME.fullmatch(left) or right.startswith("⟦") else ""
    if not name and not _reads(left):
        return None
    unknown: Tree = ("var", f"?{name}")
    left_tree = parse(left) if _reads(left) else unknown
    right_tree = parse(right) if _reads(right) else ("var", f"?{right}")
    return Relation(left_tree, "=", right_tree, re.sub(r"\s", "", name), read(right))


def _ratio(text: str) -> Ratio | None:
    half = re.search(r"«\s*([ap])\.?\s*m\.?\s*»$|\b([AP])\.?M\.?$|([ap])\.m\.?$", text, re.IGNORECASE)
    bare = text[: half.start()] if half else text
    pieces = [piece for _, piece in split_outside(bare, ":", "«to»")]
    if len(pieces) < 2 or not all(pieces) or not all(_reads(piece) for piece in pieces):
        return None
    which = next((group for group in half.groups() if group), "") if half else ""
    return Ratio(tuple(parse(piece) for piece in pieces), bare.replace(" ", ""), which.lower() + "m" if which else "")


def _quantity(text: str) -> Quantity | None:
    """A formula with a unit behind it, or a currency in front of it."""
    if compound := _compound(text):
        return compound
    formula, tail = text, ""
    if text.startswith("«") and (front := re.match(r"«([^»]*)»\s*(?=[\d.\\(-])", text)):
        if not (read_unit(front.group(1)).is_known and front.group(1) in ("usd", "eur", "gbp", "jpy")):
            return None
        formula, tail = text[front.end() :], front.group(1)
        behind = formula.find("«")
        if behind > 0 and read_unit(formula[behind:]).is_known:
            formula = formula[:behind]
    elif (place := text.find("«")) > 0:
        formula, tail = text[:place], text[place:]
    elif degrees := re.fullmatch(r"([^A-Za-z]*|[^A-Za-z]*\\(?:frac|pi)[^A-Za-z]*)\\degree\s*([CF]?)", text):
        formula, tail = degrees.group(1), {"C": "celsius", "F": "fahrenheit", "": "degree"}[degrees.group(2)]
    elif text.endswith("%"):
        formula, tail = text[:-1], "percent"
    if tail and "\\degree" in formula:
        formula, tail = formula.replace("\\degree", ""), {"«C»": "celsius", "«F»": "fahrenheit"}.get(tail, tail)
    if tail and (formula.rstrip().endswith(("/", "^", "_")) or _FURTHER_NUMBER.search(re.sub(r"«[^»]*»", " ", tail))):
        return None
    formula = formula.strip().rstrip("-").strip()
    if _denies(tail) or not _reads(formula):
        return None
    return Quantity(parse(formula), read_unit(tail) if tail else None, text)


def _counted(text: str) -> Quantity | None:
    """A number in words, with or without a noun behind it."""
    bare = re.sub(r"[«»]", " ", text).strip()
    if (found := number_in_words(bare)) is None:
        return None
    number, noun = found
    return Quantity(("num", Fraction(number)), read_unit(noun) if noun else None, bare)


def _compound(text: str) -> Quantity | None:
    """Hours and minutes, feet and inches: parts of one dimension, added up."""
    pieces = re.findall(r"([\d./]+)\s*«([^»]*)»", text)
    if len(pieces) < 2 or re.sub(r"[\d./]+\s*«[^»]*»", "", text).strip():
        return None
    units = [read_unit(word) for _, word in pieces]
    if not units[0].is_known or len({unit.dimension for unit in units}) > 1:
        return None
    total = sum((Fraction(number) * unit.factor for (number, _), unit in zip(pieces, units, strict=True)), Fraction(0))
    return Quantity(("num", total / units[0].factor), units[0], text)


def _words(text: str) -> Answer:
    bare = re.sub(r"\s+", " ", re.sub(r"[«»]", " ", text)).strip().lower()
    if "«" not in text and re.search(r"[\d\\A-Za-z]", text):
        return Words(text, is_formula=True)
    spelled = text.strip("«» ")
    if is_symbol(spelled) and bare != "no":
        return Words(spelled)
    bare = re.sub(r"\b(?:the|a|an)\b|[^\w\s^+*/=<>-]", " ", bare)
    return Words(" ".join(bare.split()))


def _matrix(inside: str) -> Matrix:
    rows = [row for _, row in split_outside(inside, ";") if row.replace("«and»", "").strip()]
    return Matrix(tuple(tuple(read(entry) for _, entry in split_outside(row, "&")) for row in rows))


def _digits(found: re.Match[str]) -> Digits | None:
    digits = found.group("barred") or found.group("wrapped") or found.group("bare")
    said = next(word for word in (found.group("base"), found.group("said"), found.group("word")) if word)
    word = said.strip("«» ").lower().removeprefix("base ").strip()
    base = int(word) if word.isdigit() else _BASE_WORDS.get(word, 0)
    if spelled := number_in_words(word):
        base = spelled[0]
    if not re.search(r"\d", digits) and base != 16:
        return None
    return Digits(digits.upper().lstrip("0") or "0", base) if 2 <= base <= 36 else None


def _signed(text: str, first: str, second: str) -> str:
    return text.replace("\\pm", first).replace("\\mp", second)


def _reads(text: str) -> bool:
    try:
        parse(text)
    except Unreadable:
        return False
    return True
