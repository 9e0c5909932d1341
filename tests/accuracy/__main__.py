"""`python -m tests.accuracy`: measure every family and special function, and write `docs/accuracy.md`."""

from __future__ import annotations

import argparse
import sys

import torch

from tests.accuracy import page
from tests.accuracy.families import FAMILIES
from tests.accuracy.measure import FLOOR, Family, measure
from tests.accuracy.special import SPECIAL, measure_special


def limits(family: Family, key: str) -> float:
    """What a figure of a family may be at most."""
    return 1.0 if key in ("round trip", "mpmath") else family.gradient


def report(name: str, figures: dict, family: Family | None) -> list[str]:
    """Print what was measured; the figures that are beyond their limits."""
    print(f"{name}: {figures['seconds']:.1f} s", flush=True)
    beyond = []
    for dtype in ("float32", "float64"):
        for key, part in figures[dtype].items():
            over = family is not None and not part["figure"] <= limits(family, key)
            print(f"  {dtype} {key}: {part['figure']:.2g}" + (f"  BEYOND, at {part['place']}" if over else ""))
            if over:
                beyond.append(f"{name}: {dtype} {key} {part['figure']:.2g} at {part['place']}")
    return beyond


def main(arguments: list[str] | None = None) -> int:
    """Measure, store, and write the page once every line has figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="lines whose names contain one of these")
    parser.add_argument("--missing", action="store_true", help="only lines that have no figures yet")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        metavar="S",
        help="let as many draws of a line meet mpmath as fit into this time, at least the fixed number of the line",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    beyond: list[str] = []

    def wanted(kind: str, name: str) -> bool:
        if options.missing and page.stored(kind, name) is not None:
            return False
        return not options.only or any(part.lower() in name.lower() for part in options.only)

    lines = [("special", name, special) for name, special in SPECIAL.items()]
    lines += [("family", name, family) for name, family in FAMILIES.items()]
    for kind, name, line in lines:
        if not wanted(kind, name):
            continue
        try:
            run = measure if isinstance(line, Family) else measure_special
            figures = run(line, seconds=options.seconds)
        except Exception as error:  # one line must not keep the others from being measured
            beyond.append(f"{name}: {type(error).__name__}: {error}")
            print(beyond[-1], flush=True)
            continue
        page.store(kind, name, figures)
        beyond += report(name, figures, line if isinstance(line, Family) else None)
    without = [name for name in SPECIAL if page.stored("special", name) is None]
    without += [name for name in FAMILIES if page.stored("family", name) is None]
    if without:
        print(f"no page: {len(without)} lines have no figures yet ({', '.join(without)}); run it with --missing")
    else:
        page.write(FLOOR)
        print(f"wrote {page.PAGE.relative_to(page.ROOT)}")
    print("\n".join(["beyond the limits:", *beyond] if beyond else ["every figure is within its limit"]))
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
