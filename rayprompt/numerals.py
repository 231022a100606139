"""Numbers in a text, of any script, separators and notation, each in one canonical form."""

from __future__ import annotations

import re
import unicodedata
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction

from rayprompt.scripts import unspaced, visible

SPACES = " \u2009\u202f\u00a0"
CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20a9"
MOST_ZEROS = 1000  # of a number that is written out
EXACT = Context(prec=4000)

# Commas stand between groups of 3, or, as in India, of 2 before the last group.
GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"
_DIGITS = rf"(?:(?:{GROUPS})(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?"
_RATIO = r"(?<![\d/.,])\d{1,9}/0*[1-9]\d{0,8}(?![\d/]|[.,]\d)"  # no date
NUMBER = re.compile(rf"(?P<sign>[-\u2010-\u2013\u2212])?[{CURRENCY}]?(?P<digits>{_RATIO}|{_DIGITS})")
RATIO = re.compile(r"-?\d{1,20}/0*[1-9]\d{0,19}")
WHOLE = re.compile(rf"[-+]?(?:(?:{GROUPS})(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
PLAIN_NUMBER = re.compile(r"\d*\.?\d+")

# One script: digits, points and signs of ASCII.
WRITTEN = str.maketrans(
    {chr(0xFEE0 + ord(c)): c for c in "+,-.%$/"}
    | {"\u066b": ".", "\u066c": ",", "\ufe63": "-", "\uffe5": "\u00a5", "\u2044": "/"}
)
OTHER_DIGIT = re.compile(r"(?![0-9])\d")
FRACTION = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e\u2189])")
RAISED = re.compile(r"(?<=\d)([\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+)")

# One notation: 1,234.5 for other separators, 16/3 for mixed numbers, 1e3 for powers of ten.
LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}")
LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")
SPACED = re.compile(
    rf"(?<![\d.,])(?<!\d[{SPACES}])([1-9]\d{{0,2}})((?P<by>[{SPACES}'\u2019_])\d{{3}}(?:(?P=by)\d{{3}})*)"
    rf"([.,]\d+)?(?![{SPACES}]?\d)"
)
POINTS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?![.,]?\d)")  # 1.234,5 and 1.234.567
SWAPPED = str.maketrans(".,", ",.")
MIXED = re.compile(rf"(?<![\d.,/])((?:{GROUPS})|\d{{1,9}})[{SPACES}](\d{{1,9}})/(\d{{1,9}})(?![\d/]|[.,]\d)")
UNIT_POWER = re.compile(r"(?<=[^\W\d_]|[)}])\^(?:\{[-+]?\d+\}|[-+]?\d+)")  # of cm^2, x^2
_POWER = r"\^(?:\{([-+\u2212]?\d{1,3})\}|([-+]?\d{1,3}))(?![\d^])"
TEN = re.compile(
    rf"(?:(?<![\d.,])(\d[\d,]{{0,30}}(?:\.\d{{1,30}})?)\s*(?:[x\u00d7*\u00b7\u22c5]|\\times|\\cdot)\s*)?(?<![\d.,^])10{_POWER}"
)
POWER = re.compile(rf"(?<![\d.,^])(\d{{1,9}}(?:\.\d{{1,9}})?){_POWER}")
APART = re.compile(r"(?<=[={])(\s*[-\u2212])\s+(?=\.?\d)")  # = - 5
CLOSING = "%\u2030\u00b0'\"\u2032\u2033}" + CURRENCY  # may come between digits and a hyphen


def last_number(text: str) -> str | None:
    """The last number in a text in canonical form: "$1,234.50." is ``1234.5``; None where there is none.

    Digits of any script count, and so do fractions (5 1/3 is ``16/3``), powers (10² is ``100``) and groups of digits
    with spaces, points or apostrophes between them. A minus behind a letter is a hyphen, unless the letter's script
    has no spaces between words. In ``300 300`` the same number is written twice; ``1 234`` is one number.
    """
    plain = _in_one_notation(in_ascii_digits(text))
    found = list(NUMBER.finditer(plain))
    if not found:
        return None
    minus = found[-1]["sign"] and not _is_hyphen(plain, found[-1].start())
    return canonical(("-" if minus else "") + found[-1]["digits"])


def _is_hyphen(text: str, at: int) -> bool:
    """Whether the minus at a place is a hyphen or a subtraction: a letter, a number or a bracket precedes it."""
    before = text[:at].rstrip("_")[-1:]
    if before and before in ")]":
        return True
    digits = text[:at].rstrip(CLOSING)[-1:]
    return digits.isdecimal() or (before.isalnum() and not unspaced(before))


def in_ascii_digits(text: str) -> str:
    """A text with the digits, points and signs of other scripts as those of ASCII; 5½ is 5 1/2, 10² is 10^{2}."""
    if text.isascii():
        return text
    text = RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[1])}}}", visible(text))
    text = FRACTION.sub(
        lambda found: f"{found[1]}{' ' * bool(found[1])}{unicodedata.normalize('NFKC', found[2])}", text
    )
    return OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text.translate(WRITTEN))


def _in_one_notation(text: str) -> str:
    """A text whose numbers have commas between groups, a point, a plain ratio or an exponent."""
    if "\\" in text:
        text = LATEX_FRACTION.sub(lambda found: f"{found[1]}{' ' * bool(found[1])}{found[2]}/{found[3]}", text)
    text = LATEX_COMMA.sub(",", text)
    text = POINTS.sub(lambda found: found[0].translate(SWAPPED), SPACED.sub(_joined, text))
    if "/" in text:
        text = MIXED.sub(_improper, text)
    if "^" in text:
        text = TEN.sub(lambda found: f"{found[1] or 1}e{_exponent(found)} ", UNIT_POWER.sub("", text))
        text = POWER.sub(_power, text)
    return APART.sub(r"\1", text)


def _joined(found: re.Match[str]) -> str:
    """Groups of digits as one number; equal groups with spaces between them are one number repeated."""
    first, rest, by, part = found.groups()
    if by == " " and set(rest.split()) == {first}:
        return found[0]
    return first + rest.replace(by, "") + (part or "").replace(",", ".")


def _improper(found: re.Match[str]) -> str:
    whole, above, below = (int(part.replace(",", "")) for part in found.groups())
    return f"{whole * below + above}/{below}" if above < below else found[0]


def _exponent(found: re.Match[str]) -> int:
    return int((found[2] or found[3]).replace("\u2212", "-"))


def _power(found: re.Match[str]) -> str:
    base, exponent = Decimal(found[1]), _exponent(found)
    if not base or abs(exponent) > 99:
        return found[0]
    if exponent >= 0:
        return f"{EXACT.power(base, exponent):f}" if exponent else "1"
    return f"1/{int(base) ** -exponent}" if base == int(base) else found[0]


def last_plain_number(text: str) -> str | None:
    """The last number by Prompt-OIRL's rule (arXiv 2309.06553, its code): digits and a point, no sign, no commas."""
    found = PLAIN_NUMBER.findall(text)
    return canonical(found[-1]) if found else None


def canonical(number: str | None) -> str | None:
    """A number in canonical form: ``1,234.50`` is ``1234.5``; any other text as it is, stripped."""
    if number is None:
        return None
    plain = in_ascii_digits(str(number)).strip()
    text = _in_one_notation(plain).strip().replace(",", "")
    if RATIO.fullmatch(text):
        return _ratio(text)
    value = number_of(text)
    if value is None:
        return plain.replace(",", "") or None
    if not value:
        return "0"
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    written = "".join(map(str, digits)).lstrip("0")
    kept = written.rstrip("0") if exponent < 0 or written.endswith("0") else written
    exponent += len(written) - len(kept)
    if abs(exponent) > MOST_ZEROS:
        return f"{'-' * sign}{kept}e{exponent}"
    if exponent >= 0:
        return "-" * sign + kept + "0" * exponent
    whole, part = kept[:exponent], kept[exponent:]
    return f"{'-' * sign}{whole or '0'}.{part.rjust(-exponent, '0')}"


def _ratio(text: str) -> str | None:
    """A ratio as a decimal number where that has an end, else in lowest terms."""
    value = Fraction(text)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    return canonical(f"{EXACT.divide(Decimal(value.numerator), Decimal(value.denominator)):f}")


def number_of(text: str) -> Decimal | None:
    """The exact number that a text is, of however many digits; None for any other text."""
    plain = text.strip().replace("\u2212", "-")
    if not WHOLE.fullmatch(plain):
        return None
    try:
        value = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
