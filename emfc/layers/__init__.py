"""The lowered program: the structured layer, its gates, and both directions of its evaluation."""

from __future__ import annotations

from emfc.layers.structured import StructuredLayer, StructuredTransform

__all__ = ["StructuredLayer", "StructuredTransform"]
