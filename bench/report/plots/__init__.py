"""The plots of a report. A model has one colour and marker in all of them; the base is grey."""

from bench.report.plots.depth import frontier, frontier_retained
from bench.report.plots.drawing import Plot

__all__ = ["Plot", "frontier", "frontier_retained"]
