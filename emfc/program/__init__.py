"""The front end: one watched run of a model, written down as data.

`trace` watches, `guard` refuses, `ir` is what is written down, `graph` the view of it, `verify` the check.
Only the error is imported here, so that whoever handles it need not load torch.
"""

from __future__ import annotations

from emfc.program.errors import CODES, CompileError

__all__ = ["CODES", "CompileError"]
