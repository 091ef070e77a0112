"""What stands behind a number: units that are compared, currencies, percent, degrees; other words are only remarks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]  # powers of basic quantities, sorted by name


@dataclass(frozen=True)
class Unit:
    """factor: of the basic unit. dimension: what it measures; empty for a word that is no unit that is known."""

    factor: Fraction = Fraction(1)
    dimension: Dimension = ()
    word: str = ""

    @property
    def is_known(self) -> bool:
        return bool(self.dimension)


GENERIC = re.compile(r"(?:(?:square|cubic|sq)\s+)?units?(?:\^\d)?|单位|平方单位")
PERCENT: Dimension = (("percent", 1),)
ANGLE: Dimension = (("angle", 1),)

_PREFIXES = {"n": -9, "µ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9}
_BASIC = {  # symbol: (quantity, factor)
    "m": "length", "g": "mass", "s": "time", "N": "force", "J": "energy", "W": "power", "V": "voltage", "A": "current",
    "Hz": "frequency", "Pa": "pressure", "mol": "amount", "Ω": "resistance", "K": "temperature", "C": "charge",
}  # fmt: skip
_NAMES: dict[str, tuple[str, int | Fraction]] = {
    "meter": ("length", 1), "metre": ("length", 1), "gram": ("mass", 1), "gramme": ("mass", 1), "second": ("time", 1),
    "sec": ("time", 1), "minute": ("time", 60), "min": ("time", 60), "hour": ("time", 3600), "hr": ("time", 3600),
    "h": ("time", 3600), "day": ("time", 86400), "week": ("time", 604800), "year": ("month", 12), "month": ("month", 1),
    "decade": ("month", 120),
    "inch": ("length", Fraction(254, 10000)), "inches": ("length", Fraction(254, 10000)),
    "in": ("length", Fraction(254, 10000)), "ft": ("length", Fraction(3048, 10000)),
    "foot": ("length", Fraction(3048, 10000)), "feet": ("length", Fraction(3048, 10000)),
    "yard": ("length", Fraction(9144, 10000)), "yd": ("length", Fraction(9144, 10000)),
    "mile": ("length", Fraction(1609344, 1000)), "mi": ("length", Fraction(1609344, 1000)),
    "pound": ("weight", 1), "lb": ("weight", 1), "lbs": ("weight", 1), "ounce": ("weight", Fraction(1, 16)),
    "oz": ("weight", Fraction(1, 16)), "ton": ("mass", 1000000), "tonne": ("mass", 1000000), "t": ("mass", 1000000),
    "newton": ("force", 1), "joule": ("energy", 1), "watt": ("power", 1), "volt": ("voltage", 1),
    "ampere": ("current", 1), "amp": ("current", 1), "ohm": ("resistance", 1), "pascal": ("pressure", 1),
    "hertz": ("frequency", 1), "kelvin": ("temperature", 1), "mole": ("amount", 1), "coulomb": ("charge", 1),
    "dollar": ("usd", 1), "usd": ("usd", 1), "cent": ("usd", Fraction(1, 100)), "¢": ("usd", Fraction(1, 100)),
    "euro": ("eur", 1), "eur": ("eur", 1), "gbp": ("gbp", 1), "yuan": ("cny", 1), "rmb": ("cny", 1), "jpy": ("jpy", 1),
    "yen": ("jpy", 1), "rupee": ("inr", 1), "percent": ("percent", 1), "per cent": ("percent", 1), "%": ("percent", 1),
    "pct": ("percent", 1), "degree": ("angle", 1), "deg": ("angle", 1), "radian": ("radian", 1), "rad": ("radian", 1),
    "celsius": ("celsius", 1), "fahrenheit": ("fahrenheit", 1), "度": ("angle", 1), "元": ("cny", 1),
    "厘米": ("length", Fraction(1, 100)), "毫米": ("length", Fraction(1, 1000)), "千米": ("length", 1000),
    "公里": ("length", 1000), "米": ("length", 1), "千克": ("mass", 1000), "公斤": ("mass", 1000), "克": ("mass", 1),
    "秒": ("time", 1), "分钟": ("time", 60), "小时": ("time", 3600), "天": ("time", 86400), "美元": ("usd", 1),
    "acre": ("acre", 1),
}  # fmt: skip
_LITRE = Fraction(1, 1000)
_LONG_PREFIXES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}


def read_unit(text: str) -> Unit:
    """The unit that a text names, or what it begins with; a word of no known unit has no dimension."""
    tail = re.sub(r"[«»{}]", " ", text).replace("*", " ").replace(".", " ")
    tail = re.sub(r"\s*\^\s*", "^", " ".join(tail.split()))
    tail = tail.replace("per cent", "percent")
    tail = re.sub(r"\bdegrees?\s+(?=celsius|fahrenheit)", "", tail, flags=re.IGNORECASE)
    tail = re.sub(r"平方\s*", "square ", tail)
    tail = re.sub(r"立方\s*", "cubic ", tail)
    factor, powers, sign, pending, found = Fraction(1), dict[str, int](), 1, 1, False
    for piece in re.findall(r"/|[^\s/]+", tail):
        if piece in ("/", "per"):
            sign = -1
            continue
        if piece.lower() in ("square", "sq", "squared"):
            pending = 2
            continue
        if piece.lower() in ("cubic", "cu"):
            pending = 3
            continue
        name, _, power = piece.partition("^")
        known = _basic(name)
        if known is None or not re.fullmatch(r"-?\d?", power):
            break
        exponent = sign * pending * int(power or 1)
        for quantity, each in known[1]:
            powers[quantity] = powers.get(quantity, 0) + each * exponent
        factor *= known[0] ** exponent
        sign, pending, found = 1, 1, True
    dimension = tuple(sorted((name, power) for name, power in powers.items() if power))
    return Unit(factor, dimension, tail) if found else Unit(word=tail)


def _basic(name: str) -> tuple[Fraction, Dimension] | None:
    if name in ("mph", "MPH"):
        return Fraction(1609344, 3600_000), (("length", 1), ("time", -1))
    if name == "cc":
        return Fraction(1, 1000_000), (("length", 3),)
    if name == "kmh":
        return Fraction(1000, 3600), (("length", 1), ("time", -1))
    litre = re.fullmatch(r"(m|c|d|k|milli|centi|deci)?(?:[lL]|lit(?:er|re)s?)", name)
    if litre:
        prefix = litre.group(1) or ""
        power = _PREFIXES.get(prefix, _LONG_PREFIXES.get(prefix, 0))
        return _LITRE * Fraction(10) ** power, (("length", 3),)
    for prefix, power in {"": 0, **_PREFIXES}.items():
        if name.startswith(prefix) and name[len(prefix) :] in _BASIC:
            return Fraction(10) ** power, ((_BASIC[name[len(prefix) :]], 1),)
    lower = name.lower()
    for prefix, power in {"": 0, **_LONG_PREFIXES}.items():
        for stem in (lower, lower.removesuffix("s")):
            if stem.startswith(prefix) and stem[len(prefix) :] in _NAMES:
                quantity, size = _NAMES[stem[len(prefix) :]]
                return Fraction(10) ** power * size, ((quantity, 1),)
    return None
