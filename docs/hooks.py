"""What the pages make of docstrings: formulas become MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

FORMULA = re.compile(r":math:<code>(.*?)</code>", flags=re.DOTALL)
EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page: formulas are written ``:math:`...```."""
    return FORMULA.sub(lambda found: convert(html.unescape(found[1])), content)


class ExampleSections(Extension):
    """Reads a section ``Example:`` as ``Examples:``, the one name under which doctests are shown as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe with each class, function and module."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)
