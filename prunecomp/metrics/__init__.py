"""Which layers matter least: one file per metric, see `prunecomp.metrics.base`."""

from prunecomp.registry import Registry

METRICS = Registry(__name__, "METRIC", "metric")
