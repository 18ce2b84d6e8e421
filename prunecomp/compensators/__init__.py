"""What closes the gap that a cut leaves: one file per compensator, see `base`."""

from prunecomp.registry import Registry

COMPENSATORS = Registry(__name__, "COMPENSATOR", "compensation", joint="-")
