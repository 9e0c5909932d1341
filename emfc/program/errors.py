"""The one error that refuses a program."""

from __future__ import annotations

from typing import Any

__all__ = ["CODES", "CompileError"]

CODES: dict[str, str] = {
    "E-DATADEP": "the program branches on a random value",
    "E-ESCAPE": "a random value leaves the tensors that the compiler can follow",
    "E-DYNSHAPE": "a shape depends on a random value",
    "E-IMPURE": "the program draws noise or keeps state outside pyro.sample",
    "E-STRUCT": "the set of sites changes between runs",
    "E-SUBSAMPLE": "a plate is subsampled",
    "E-NOCDF": "the family has no CDF transform",
    "E-DISCRETE": "a discrete latent site cannot be summed out",
    "E-FACTOR": "the program scales, masks or adds log density outside its sites",
    "E-OPERATION": "the program uses an operation that the compiler does not know",
    "E-SUPPORT": "the support of a site is not fixed",
    "E-MODEL": "the model itself raised an error",
    "E-VERIFY": "the compiled program does not reproduce the model",
}


class CompileError(ValueError):
    """A program was refused.

    The message names the reason, the site, the source line and what to write instead.

    Attributes:
        code: One of the keys of ``CODES``, such as ``"E-DATADEP"``.
        site: Name of the sample site concerned, if there is one.
        location: ``"file.py:12"``, the user's line, if it is known.
        source: Text of that line.
        advice: What to write instead.
    """

    def __init__(
        self,
        code: str,
        reason: str = "",
        *,
        site: str | None = None,
        location: str | None = None,
        source: str | None = None,
        advice: str | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.site = site
        self.location = location
        self.source = source
        self.advice = advice
        if not reason:  # a whole message: Pyro makes errors again with more text
            self.code, _, self.reason = code.partition(": ")
        super().__init__(self._message() if reason else code)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, self.reason, self.site, self.location, self.source, self.advice)

    def _message(self) -> str:
        where = f"{self.location}: " if self.location else ""
        line = f" in `{self.source}`" if self.source else ""
        site = f" (site {self.site!r})" if self.site else ""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.code}: {where}{self.reason}{line}{site}{advice}"


def _rebuild(code: str, reason: str, site: Any, location: Any, source: Any, advice: Any) -> CompileError:
    return CompileError(code, reason, site=site, location=location, source=source, advice=advice)
