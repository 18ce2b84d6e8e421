"""Deployment formats, one file each; the file's name is the one that ``--format`` takes.

A format's module ends with an object named ``EXPORTER``, see `exporters.base`.
"""

from prunecomp.registry import Registry

EXPORTERS = Registry(__name__, "EXPORTER", "export format")
