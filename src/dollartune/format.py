"""Numbers as people read them, the only place that writes them: 84 %, $0.0031, 2 min 05 s, 1.2 MB, 1.6 M parameters.

Unknown values are a dash. Whoever imports this module calls it `numbers`, as `format` is a function of Python's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

NONE = "–"
NO_PRICE = "no price given"
ROUNDED_UP = 0.9995
"""Of a unit: from here on three digits make it one, where the smaller unit would read 1e+03."""


def known(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def score(value: float | None, digits: int = 3) -> str:
    """0.8421 -> 0.842. One wrong row in thousands is no perfect score: 0.9996 stays that."""
    return _beside_whole(value, digits) if value is not None and known(value) else NONE


def points(value: float) -> str:
    """A score in hundredths: 0.8421 -> 84.2; 0.9996 -> 99.96."""
    return _beside_whole(100 * value, 1)


def _beside_whole(value: float, digits: int) -> str:
    """So many digits, and up to three more where a number would be rounded onto an end of its scale from beside it."""
    for more in range(4):
        text = f"{value:.{digits + more}f}"
        if float(text) not in (-1.0, 0.0, 1.0, 100.0) or value in (-1.0, 0.0, 1.0, 100.0):
            return text
    return f"{value:.{digits}f}"  # what is left is rounding of the computer's


def change(value: float | None) -> str:
    """A difference of scores, with its sign: -0.031 -> −0.031. One row of thousands is a difference: 0.0004 -> +0.0004."""
    if value is None or not known(value):
        return NONE
    text = score(abs(value))
    # A typographic minus, as wide as the plus in a column.
    return "±0" if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def span(low: float | None, high: float | None) -> str:
    """An interval of scores: 0.812 to 0.867."""
    return f"{score(low)} to {score(high)}" if known(low) and known(high) else NONE


def change_span(low: float | None, high: float | None) -> str:
    """An interval of a difference: −0.061 to +0.002."""
    if not (known(low) and known(high)):
        return NONE
    return change(low) if change(low) == change(high) else f"{change(low)} to {change(high)}"


def dollars(value: float | None) -> str:
    """Two digits that count below a dollar: $12.30, $0.31, $0.0031; nobody pays less than a hundredth of a cent: < $0.0001."""
    if value is None or not known(value):
        return NONE
    if value == 0 or value >= 1:
        return f"${value:,.2f}"
    if 0 < value < 1e-4:
        return "< $0.0001"
    # The place of the second digit that counts.
    digits = 1 - math.floor(math.log10(value))
    return f"${value:.{max(2, digits)}f}"


def money(value: float | None, price_per_hour: float | None) -> str:
    """Dollars of what took time on a machine of that price. Without a price nothing was free: nobody said what it costs."""
    return dollars(value) if price_per_hour else NO_PRICE


def seconds(value: float | None) -> str:
    """0.42 s, 12 s, 2 min 05 s, 1.3 h, 2.1 days."""
    if value is None or not known(value):
        return NONE
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    # Up to an hour and a half in minutes: "1.3 h" hides five minutes either way.
    if value < 5400:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value / 3600:.1f} h" if value < 48 * 3600 else f"{value / 86400:.1f} days"


def clock(value: float | None) -> str:
    """How much of a budget of time was used: 362 -> 6:02, 3723 -> 1:02:03; parts of a second are cut."""
    if value is None or not known(value):
        return NONE
    whole = int(max(0.0, value))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def short_seconds(value: float | None) -> str:
    """Times below a second in milliseconds: 0.0123 -> 12.3 ms."""
    if value is None or not known(value) or value >= 1:
        return seconds(value)
    return f"{value * 1000:.3g} ms"


def count(value: float | None) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,.0f}" if value is not None and known(value) else NONE


def short_count(value: float | None) -> str:
    """1234567 -> 1.23 M."""
    if value is None or not known(value):
        return NONE
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= ROUNDED_UP * limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes in powers of a thousand: 1536 -> 1.5 kB."""
    if value is None or not known(value):
        return NONE
    # Powers of a thousand, as disks are sold and files are listed; budgets may say GiB.
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= ROUNDED_UP * limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    """A share: 0.00123 -> 0.12 %; one that fell by 0.996 fell by 99.6 and not by 100: −99.6 %."""
    if value is None or not known(value):
        return NONE
    bound, text = _percent(abs(value) * 100)
    if value >= 0:
        return f"{bound}{text}"
    return f"{bound.translate(_OTHER_WAY)}−{text}"


_OTHER_WAY = str.maketrans("<>", "><")
"""Below zero what is nearer to it is the greater."""


def _percent(points: float) -> tuple[str, str]:
    """Of a share that is not negative: whether it is below or above what is printed, and that."""
    if f"{points:.0f}" == "100" and abs(points - 100) > 1e-9:  # neither all nor enough
        exact = f"{points:.1f}"
        return ("", f"{exact} %") if exact != "100.0" else ("> " if points > 100 else "< ", "100 %")
    if points == 0 or points >= 10:
        return "", f"{points:.0f} %"
    return ("", f"{points:.2g} %") if points >= 0.001 else ("< ", "0.001 %")


def ratio(value: float | None) -> str:
    """A rate with three digits that count, as in score per dollar: 1234.5 -> 1,230; 0.01234 -> 0.0123."""
    if value is None or not known(value):
        return NONE
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    # As Python writes numbers: below that zeros are harder to count than an exponent is to read.
    if abs(rounded) < 1e-4:
        return f"{rounded:.2e}"
    return f"{rounded:,.{max(0, digits)}f}"


def rows(scale: int | None) -> str:
    """A scale in words: 100 training rows."""
    return "all training rows" if scale is None else f"{scale:,} training row{'' if scale == 1 else 's'}"


def name_of(path: str) -> str:
    """A backbone's name for people: a local folder's last part, a hub id as it is."""
    return Path(path).name if path.startswith(("/", ".", "~")) or "\\" in path or path[1:2] == ":" else path


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
