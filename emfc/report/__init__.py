"""Pictures: images and samples, training curves, time series, the program's graph."""

from __future__ import annotations

from emfc.report.canvas import check_picture_target
from emfc.report.costs import draw_costs
from emfc.report.curves import draw_examples, draw_series, draw_training_curves, series_of
from emfc.report.graph import GraphNode, draw_graph
from emfc.report.images import draw_image_panels, draw_ranked_images, image_shape
from emfc.report.layout import layered_layout

__all__ = [
    "GraphNode",
    "check_picture_target",
    "draw_costs",
    "draw_examples",
    "draw_graph",
    "draw_image_panels",
    "draw_ranked_images",
    "draw_series",
    "draw_training_curves",
    "image_shape",
    "layered_layout",
    "series_of",
]
