"""Formulas of docstrings, written ``:math:`...```, become MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r":math:<code>(.*?)</code>", flags=re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""
    return FORMULA.sub(lambda found: convert(html.unescape(found[1])), content)
