r"""One spelling for what answers write in many: characters, macros, delimiters, words, digits in groups.

Words that stand in a formula become «word»; set braces become ⦃ and ⦄, to be told from grouping braces; a matrix
becomes ⟦entry & entry ; entry & entry⟧.
"""

from __future__ import annotations

import re

from fastflow.evaluate.graders.algebra.letter_words import WRAPPERS, keep_bracketed, keep_words
from fastflow.evaluate.graders.algebra.units import read_unit
from fastflow.evaluate.graders.algebra.usual_forms import usual_forms
from fastflow.evaluate.graders.boxes import closing_brace
from fastflow.evaluate.graders.statements import compatible

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
           "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
           "⅑": (1, 9), "⅒": (1, 10)}  # fmt: skip
_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-",
    "∶": ":", "、": ",", "٪": "%", "˚": "\\degree ", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*", "÷": "/",
    "⁄": "/", "∕": "/", "√": "\\root ", 
    "∛": "\\root [3]", "∜": "\\root [4]", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ",
    "⩾": "\\ge ", "≠": "\\ne ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ", "±": "\\pm ", "∓": "\\mp ",
    "°": "\\degree ",
    "º": "\\degree ", "≈": "\\approx ", "∅": "\\emptyset ", "ℝ": "\\R ", "ℤ": "\\Z ", "ℕ": "\\N ", "∖": "\\setminus ",
    "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "λ": "\\lambda ", "φ": "\\phi ", "ω": "\\omega ",
    "μ": "µ", "δ": "\\delta ",
    "ε": "\\epsilon ", "ρ": "\\rho ", "σ": "\\sigma ", "τ": "\\tau ", "ψ": "\\psi ", "Γ": "\\Gamma ", "Δ": "\\Delta ",
    "Σ": "\\Sigma ", "Φ": "\\Phi ", "Ψ": "\\Psi ",
    "…": "\\ldots ", "⟨": "(", "⟩": ")", "′": "'", "∨": "\\lor ", "∧": "\\land ", "∣": "|",
    "€": "«eur»", "¢": "«cents»", "£": "«gbp»", "¥": "«jpy»", "％": "%", "$": "",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u200e": "", "\u200f": "",
    "\u2060": "", "\ufeff": "", "\xad": "", "\xa0": " ", "\u2009": " ",
    "\u202f": " ", "∠": "\\angle ", "△": "\\triangle ", "∼": "~", "≡": "\\equiv ", "⌊": "\\lfloor ", "⌋": "\\rfloor ",
    "⌈": "\\lceil ", "⌉": "\\rceil ",
}  # fmt: skip
_MACROS = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "leq": "\\le", "leqslant": "\\le", "geq": "\\ge",
    "geqslant": "\\ge", "neq": "\\ne", "lt": "<", "gt": ">", "cdot": "*", "times": "*", "ast": "*", "div": "/",
    "colon": ":", "lbrack": "[", "rbrack": "]", "lbrace": "⦃", "rbrace": "⦄", "lvert": "|", "rvert": "|", "vert": "|",
    "mid": "|", "varnothing": "\\emptyset", "dbinom": "\\binom", "tbinom": "\\binom", "circ": "\\degree", "to": "",
    "left": "", "right": "", "big": "", "Big": "", "bigl": "", "bigr": "", "Bigl": "", "Bigr": "", "bigg": "",
    "Bigg": "", "displaystyle": "", "textstyle": "", "limits": "", "nolimits": "", "quad": " ", "qquad": " ",
    "langle": "(", "rangle": ")", "lparen": "(", "rparen": ")", "vee": "«or»", "wedge": "«and»", "middle": "",
    "leqq": "\\le", "geqq": "\\ge", "boxed": "", "fbox": "", "mathstrut": "",
    "backslash": "\\setminus",
    "nicefrac": "\\frac", "sfrac": "\\frac", "large": "", "Large": "", "LARGE": "", "huge": "", "Huge": "",
    "small": "", "normalsize": "", "bf": "", "rm": "",
    "bigcup": "\\cup", "lor": "«or»", "land": "«and»", "infin": "\\infty", "arcsin": "\\asin", "arccos": "\\acos",
    "arctan": "\\atan", "dots": "\\ldots", "cdots": "\\ldots", "exp": "\\exp", "forall": "«for all»", "thinspace": "",
    "hfill": "", "hspace": "", "space": " ", "therefore": "", "implies": "", "approx": "\\approx", "simeq": "\\approx",
    "euro": "«eur»", "pounds": "«gbp»", "varphi": "\\phi", "varepsilon": "\\epsilon", "percent": "%",
    "checkmark": "", "blacksquare": "", "square": "", "Box": "", "qed": "",
}  # fmt: skip
_WRAPPER = re.compile(rf"\\(?:{WRAPPERS})\*?\s*\{{")
_SUBSCRIPT = re.compile(r"_\s*(?:\d|\{\s*\d+\s*\})\s*$")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "sqrt", "asin", "acos", "atan", "arcsin",
              "arccos", "arctan", "sinh", "cosh", "tanh", "pi", "infty", "binom", "max", "min", "gcd", "lcm", "abs",
              "floor", "ceil"}  # fmt: skip
_PLAIN_WORDS = {"and", "or", "if", "for", "in", "is", "the", "no", "yes", "not", "odd", "even", "all", "cm", "mm", "km",
                "kg", "mg", "ml", "ft", "hr", "min", "sec", "per", "mph", "am", "pm", "kmh", "of", "with", "any", "as",
                "to", "rad", "deg", "none", "one", "two", "six", "ten", "usd", "eur", "inf", "mod", "men", "way",
                "day", "hz", "pa", "kj", "kn", "mol", "ms", "kw", "kv", "ma", "nm", "dm", "oz", "lb", "lbs", "mi",
                "but", "has", "are", "its", "it", "on", "he", "she", "only", "sq", "ways"}  # fmt: skip
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.DOTALL)
_PREFIXES = {"x": 16, "b": 2, "o": 8}
_PREFIXED = re.compile(r"^\s*0([xbo])([0-9A-Fa-f]+)\s*$")  # 0x3F as a whole answer
_LARGE_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
_LARGE = re.compile(rf"(?<=\d)\s*«\s*({'|'.join(_LARGE_WORDS)})(?![A-Za-z])\s*([^»]*)»", re.IGNORECASE)
_CJK = re.compile(r"«\s*(?P<said>[^«»]*?)\s*»|(?P<bare>[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]+)")
_CJK_WORDS = {"和": "and", "与": "and", "及": "and", "或": "or", "或者": "or", "且": "and", "并且": "and"}
_PLAIN_QUOTIENT = re.compile(
    r"^([^A-Za-z«]*\d\s*\}?)\s*((?:[kcm]?m|k?g|mi|ft)\s*/\s*(?:s|h|hr|min|[cm]?m|L)(?:\^\{?\d\}?)?)\s*\.?$"
)
_NEGATIVE = re.compile(
    r"(?:«\s*(?:minus|negative)\s*»|(?<![\\A-Za-z«])(?:minus|negative))\s*(?=[\d.(]|\\(?:frac|sqrt|pi))", re.I
)
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3}(?:(?:,|\{,\})\d{3})+|[1-9]\d{0,2}(?:[ ']\d{3})+|\d{1,3}(?:_\d{3})+"
                     r"|[1-9]\d{0,2}(?:\.\d{3}){2,}|[1-9]\d?(?:,\d\d)+,\d{3})(?![\d,])")  # fmt: skip

_GROUPED_ENTRY = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_GROUPED_ZEROS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,0\d\d)+(?!\d)")


def normalise(text: str) -> str:
    """The text in the one spelling. Never fails; what has no meaning stays as it is."""
    text = _characters(compatible(re.sub(r"(?:\bUS\s*)?\\\$", "«usd»", text)))
    text = (
        re.sub(r"^\s*<([^<>]*,[^<>]*)>\s*$", r"(\1)", text)
        .replace("\\!", "")
        .replace("...", "\\ldots ")
        .replace("\\\\{", "\\{")
        .replace("\\\\}", "\\}")
    )
    text = re.sub(r"\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]", r"\\\\", text).replace("{}", "")
    text = usual_forms(text)
    text = _MATRIX.sub(_matrix, text)
    text = re.sub(r"\\[()\[\]]|\\\\|\\(?:text)?color\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:left|right)\s*\.", "", text).replace("{:}", ":").replace("+/-", "\\pm ")
    text = (
        text.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\%", "%").replace("\\&", " «and» ").replace("\\_", "_")
    )
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|~|\{ \})(?=\d{3})", "{,}", text)
    text = re.sub(r"\\[,;:! ]|~", " ", text)
    text = re.sub(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?", r"\\\1 ", text)
    text = re.sub(r"\\math(?:frak|cal|scr)\s*\{\s*(\w)\s*\}", r"\1", text)
    text = _wrappers(keep_words(re.sub(r"\s+", " ", text)))
    text = re.sub(r"\\([A-Za-z]+)", lambda found: _macro(found.group(1)), text)
    text = re.sub(r"\^\s*\{?\s*\\degree\s*\}?|\^\s*\{\s*o\s*\}|\^o\b", r"\\degree ", text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))", "*", text)
    text = _PREFIXED.sub(lambda found: f"{found.group(2)}_{{{_PREFIXES[found.group(1)]}}}", text)
    text = (
        text.replace("**", "^").replace("<=", "\\le ").replace(">=", "\\ge ").replace("!=", "\\ne ").replace("==", "=")
    )
    text = _CJK.sub(_cjk_word, text)
    text = _NEGATIVE.sub("-", text)
    text = re.sub(r"(?<=[\d)}])\s*(?:«\s*plus\s*»|plus\b)", "+", text, flags=re.IGNORECASE)
    text = _PLAIN_QUOTIENT.sub(r"\1 «\2»", text)
    text = re.sub(r"«[^«»]*»|(?<![\\A-Za-z])[A-Za-zµΩ]{2,}", _word, text)
    text = _join_digits(text)
    text = re.sub(r"\\frac\s*\{\s*(«[^»]*»)\s*\}\s*\{\s*(«[^»]*»)\s*\}", r"\1/\2", text)
    text = re.sub(r"(?<=\d)\s*«\s*dozen\b\s*([^»]*)»", r"*12«\1»", text)
    text = re.sub(r"«\s*(?:positive )?infinity\s*»", r"\\infty ", text, flags=re.IGNORECASE)
    text = _LARGE.sub(lambda found: f"*10^{{{_LARGE_WORDS[found.group(1).lower()]}}}«{found.group(2)}»", text)
    text = re.sub(r"[\[(]\s*(⟦[^⟧]*⟧)\s*[\])]", r"\1", text.replace("«»", ""))
    return re.sub(r"\s+", " ", text).strip()


def _matrix(found: re.Match[str]) -> str:
    """The rows of a matrix between semicolons; entries that only commas part are parted by & as in LaTeX."""
    inside = found.group(2).replace("\\\\", ";")
    if "&" not in inside and not re.search(r"[({]", inside):
        inside = re.sub(r",(?!\d{3}(?!\d))|(?<=0),|,(?=[1-9])", "&", inside)
    return f"⟦{inside}⟧"


def _characters(text: str) -> str:
    text = re.sub("[" + "".join(_SUPERSCRIPTS) + "]+", lambda run: f"^{{{_spell(run.group(), _SUPERSCRIPTS)}}}", text)
    text = re.sub("[" + "".join(_SUBSCRIPTS) + "]+", lambda run: f"_{{{_spell(run.group(), _SUBSCRIPTS)}}}", text)
    text = "".join(rf"\frac{{{_VULGAR[c][0]}}}{{{_VULGAR[c][1]}}}" if c in _VULGAR else c for c in text)
    return "".join(_CHARACTERS.get(character, character) for character in text)


def _cjk_word(found: re.Match[str]) -> str:
    word = found.group("bare") or found.group("said")
    return f"«{_CJK_WORDS[word]}»" if word in _CJK_WORDS else f"«{word}»" if found.group("bare") else found.group()


def _spell(run: str, table: dict[str, str]) -> str:
    return "".join(table[character] for character in run)


def _macro(name: str) -> str:
    meant = _MACROS.get(name)
    if meant is None:
        return f"\\{name} "
    return f"{meant} " if meant.startswith("\\") else meant or " "


def _wrappers(text: str) -> str:
    r"""`\text{...}` as «...», or as its content where that is a formula of its own."""
    while found := _WRAPPER.search(text):
        end = closing_brace(text, found.end())
        content, rest = (text[found.end() :], "") if end is None else (text[found.end() : end], text[end + 1 :])
        before = text[: found.start()]
        front = re.sub(r"\\[,;:! ]|~", " ", before)
        behind_number = bool(re.search(r"[\d})]\s*$", front)) and not _SUBSCRIPT.search(front)
        text = f"{before} {_wrapped(content, behind_number)} {rest}"
    return text


def _wrapped(content: str, behind_number: bool) -> str:
    bare = content.strip()
    if behind_number and re.fullmatch(r"[A-Za-z]{1,3}", bare) and bare != "e" and read_unit(bare).is_known:
        return f"«{bare}»"
    if behind_number and (product := _product_of_units(bare)):
        return f"«{product}»"
    if not re.search(r"[^\W\d_]", bare) or "\\" in bare or re.fullmatch(r"[eidxyzntk]", bare):
        return content
    if bare in _FUNCTIONS:
        return f"\\{bare} "
    if re.fullmatch(r"[A-Z]{1,3}", bare):
        return bare
    if re.fullmatch(r"[\s\d.,/:+=-]+[A-Za-z %]+|.*[()=\[\]].*|.*«.*|.*\d.*", bare):
        return keep_bracketed(content)
    return f"«{bare}»"


def _product_of_units(text: str) -> str:
    r"""`m\,s^{-2}` as one unit; "" for what is none."""
    pieces = re.split(r"\\[,;: ]|\\cdot\b|[\s*~]+", text)
    factors = [piece for piece in pieces if piece]
    known = all(
        re.fullmatch(r"[A-Za-zµΩ]{1,3}(?:\^\{?-?\d\}?)?", factor) and read_unit(factor).is_known for factor in factors
    )
    return re.sub(r"[{}]", "", " ".join(factors)) if known and len(factors) > 1 else ""


def _word(found: re.Match[str]) -> str:
    run = found.group()
    if run.startswith("«"):
        return run if run.strip("«» ") else " "
    if run.lower() in _FUNCTIONS and not (run == "min" and re.search(r"\d\s*$", found.string[: found.start()])):
        return f"\\{run.lower()} "
    if run.lower() in _PLAIN_WORDS or len(run) > 3 or "µ" in run:
        return f"«{run}»"
    return run


def _join_digits(text: str) -> str:
    """Digits in groups as one number; a comma in braces is otherwise a decimal one."""
    pieces, depth, start = [], 0, 0
    for position, character in enumerate(text):
        change = (character in "([⦃⟦") - (character in ")]⦄⟧")
        if change and depth + change >= 0:
            pieces.append(_ungrouped(text[start:position]) if depth == 0 else _ungrouped_entries(text[start:position]))
            start = position
            depth += change
    pieces.append(_ungrouped(text[start:]) if depth == 0 else text[start:])
    text = "".join(pieces)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))(?<!\b0\{,\})", "", text)
    return re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)


def _ungrouped_entries(text: str) -> str:
    """In a list a comma parts entries. It groups where commas with a blank part them, and before 000 or 050."""
    groups = _GROUPED_ENTRY if re.search(r",\s|&", text) else _GROUPED_ZEROS
    return groups.sub(lambda found: found.group().replace(",", ""), text)


def _ungrouped(text: str) -> str:
    text = _ungrouped_entries(text) if re.search(r",\s", text) else text
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])", lambda found: _points(found.group()), text)
    return _GROUPS.sub(lambda found: re.sub(r"\D", "", found.group()), text)


def _points(number: str) -> str:
    """1.234.567,89 with a decimal point."""
    return number.replace(".", "").replace(",", ".")
