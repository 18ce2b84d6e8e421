"""Engines for offline generation, one file each; the file's name is the engine's."""

from __future__ import annotations

from prunecomp.registry import Registry

ENGINES = Registry(__name__, "ENGINE", "engine")
