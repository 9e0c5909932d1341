"""Plans that are already made, by the digest of their program."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from weakref import WeakValueDictionary

from emfc.errors import UserError
from emfc.layers.plan import Plan
from emfc.layers.planning import make_plan
from emfc.passes.pipeline import PASSES
from emfc.program.digest import digest
from emfc.program.ir import Program

__all__ = ["cached_plan"]

_Key = tuple[str, bool, frozenset[str]]
_PLANS: WeakValueDictionary[_Key, Plan] = WeakValueDictionary()


def cached_plan(program: Program, *, optimize: bool = True, passes: Collection[str] | None = None) -> Plan:
    """The plan of a program; one that a layer still uses is shared, since a plan never changes.

    Args:
        program: What the front end wrote down.
        optimize: False keeps every site apart: the reference that the optimised plan must equal.
        passes: Names of the passes that run, where not all should.

    Raises:
        UserError: There is no such pass.
        CompileError: The program cannot be compiled.
    """
    chosen = frozenset(PASSES if passes is None else passes)
    for name in sorted(chosen - frozenset(PASSES)):
        close = get_close_matches(name, PASSES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PASSES)}"
        raise UserError(f"no pass {name!r}; {hint}")
    key = (digest(program), optimize, chosen)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS[key] = make_plan(program, optimize=optimize, passes=chosen)
    return plan
