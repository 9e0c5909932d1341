"""Learned layers and the embedding of a program between them."""

from __future__ import annotations

from emfc.flows.configuration import FlowConfiguration
from emfc.flows.distribution import FlowDistribution
from emfc.flows.flow import EmbeddedModelFlow
from emfc.flows.storage import load, save

__all__ = ["EmbeddedModelFlow", "FlowConfiguration", "FlowDistribution", "load", "save"]
