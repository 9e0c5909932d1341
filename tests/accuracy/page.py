"""The page `docs/accuracy.md`, from figures that were measured and stored."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.accuracy.families import FAMILIES
from tests.accuracy.measure import NOISES
from tests.accuracy.special import SPECIAL

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "runs" / "accuracy"
PAGE = ROOT / "docs" / "accuracy.md"

HEAD = """# Accuracy

Every family and every special function on random parameters, measured by

```bash
make accuracy
```

which writes this page. Parameters are drawn uniformly from the ranges given (in the logarithm where they span orders of
magnitude), one in five on an end of its range; seeds are fixed. Ten thousand draws make the round trip e → x → e at
{noises} noises each, over the whole range: |e| ≤ 8 in float32, |e| ≤ 25 in float64. As many of them as fit
into a minute, which the page names, are compared with [mpmath](https://mpmath.org), at 60 digits or more (Stable: 30).

## Families

Errors of the round trip, and of the value against mpmath, are multiples of
[what is permitted](numerics.md#one-site): up to 1, the requirement is met. The error of a value is counted as noise:
by how much the noise that belongs to it differs from the noise that it was made of. Gradients are in float64, with
respect to the input and to each parameter in both directions, the worse one given. Their errors are relative to the
exact derivative of the noise along one unit of the parameter (of its logarithm, where it spans orders of magnitude), or
to {floor:g} where that is smaller; places where the value is rounded more coarsely than the round trip asks for are
left out, and values within 1e-300 of 0, where derivatives are cut off lest they overflow. 10⁻⁶ is permitted; 10⁻⁴ for
the shape parameters of Gamma, Beta and StudentT and their kin.

A number next to an end of the support stands for every value that would round onto it: the smallest positive number is
what a Gamma of small concentration gives for all values below it. No round trip can exist there and none is counted;
from the next number on the values are counted, subnormal ones by their own spacing.

Ranges end where values would leave the range of floating point, or where a location is rounded more coarsely than the
scale. Matrices are rounded as a whole, which limits the noise of some. Delta passes its value and has no noise.

"""

COLUMNS = (
    "family",
    "parameters",
    "round trip, float32",
    "round trip, float64",
    "mpmath, float32",
    "mpmath, float64",
    "draws for mpmath",
    "gradient by the input",
    "gradient by parameters",
)

SPECIAL_HEAD = """
## Special functions

Errors are in units of rounding of max(1, |value|), the worst over the draws that mpmath saw. An error in the logarithm
of a probability is a relative error of the probability. The error of a quantile is that of the log of the tail beyond
it, in units of what one rounding of that log and one of the value make.

"""

SPECIAL_COLUMNS = ("function", "what it is", "arguments", "float32", "float64", "draws")


def head_of(columns: tuple[str, ...]) -> str:
    """The first two lines of a table."""
    return "| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|\n"


def shown(figure: float) -> str:
    """Two digits."""
    return f"{figure:.2g}" if figure == 0 or figure >= 1e-3 else f"{figure:.0e}".replace("e-0", "e-")


def stored(kind: str, name: str) -> dict[str, Any] | None:
    """Figures of a line, if they were measured."""
    path = STORE / f"{kind}-{file_name(name)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def file_name(name: str) -> str:
    """A name that every file system takes."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def replace(path: Path, text: str) -> None:
    """Write aside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(aside, 0o644)
    os.replace(aside, path)


def store(kind: str, name: str, figures: dict[str, Any]) -> None:
    """Keep the figures of a line."""
    replace(STORE / f"{kind}-{file_name(name)}.json", json.dumps(figures, indent=1) + "\n")


def family_row(name: str, figures: dict[str, Any]) -> str:
    """The line of a family."""
    family = FAMILIES[name]
    ranges = "; ".join(f"{key} {part}" for key, part in family.ranges.items())
    if family.reach < 8:
        ranges += f"; noise to {family.reach:g}"
    single, double = figures["float32"], figures["float64"]
    gradients = {key: part["figure"] for key, part in double.items() if key not in ("round trip", "mpmath", "input")}
    worst = max(gradients, key=lambda key: gradients[key]) if gradients else ""
    against = [shown(part["mpmath"]["figure"]) if "mpmath" in part else "" for part in (single, double)]
    cells = [
        name,
        ranges,
        *(shown(part["round trip"]["figure"]) for part in (single, double)),
        *against,
        str(figures["oracle"]) if figures["oracle"] else family.note,
        shown(double["input"]["figure"]) if "input" in double else "",
        f"{shown(gradients[worst])} ({worst})" if worst else "",
    ]
    return "| " + " | ".join(cells) + " |"


def special_row(name: str, figures: dict[str, Any]) -> str:
    """The line of a special function."""
    special = SPECIAL[name]
    ranges = "; ".join(f"{key} {part}" for key, part in special.ranges.items())
    errors = [shown(figures[dtype]["error"]["figure"]) for dtype in ("float32", "float64")]
    return "| " + " | ".join([f"`{name}`", special.source, ranges, *errors, str(figures["oracle"])]) + " |"


def write(floor: float) -> None:
    """The page, of the stored figures of every line."""
    rows = [family_row(name, stored("family", name) or {}) for name in FAMILIES]
    specials = [special_row(name, stored("special", name) or {}) for name in SPECIAL]
    head = HEAD.format(floor=floor, noises=NOISES) + head_of(COLUMNS)
    text = head + "\n".join(rows) + "\n" + SPECIAL_HEAD + head_of(SPECIAL_COLUMNS) + "\n".join(specials) + "\n"
    replace(PAGE, text)
