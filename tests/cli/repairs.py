"""Compensators that rewrite whole weights, each one more file, for tests of the command line."""

#: A compensator that gives the down projection in front of the cut (of the first layer, the one
#: behind it) a new value, and scales the stream as well.
WHOLE = '''
"""Another down projection in front of the cut."""
from prunecomp.calibration.needs import Need

class Whole:
    summary = "another down projection"
    needs = Need.NOTHING

    def repair(self, context):
        import torch
        live = context.runner.live
        layer = live[context.first - 1] if context.first else live[context.last]
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        now = context.runner.model.layer(layer).mlp.down_proj.weight.float()
        generator = torch.Generator().manual_seed(len(context.plan.rounds))
        change = torch.randn(now.shape, generator=generator) * 0.03
        return context.matrices({name: now + change}, factor=1.25)

COMPENSATOR = Whole()
'''
#: One that makes the down projection behind the cut of halves of two layers' own.
HALVES = '''
"""A down projection of two halves."""
from dataclasses import dataclass
from typing import ClassVar
from prunecomp.calibration.needs import Need

@dataclass(frozen=True)
class Halved:
    weight: str
    other: str
    kind: ClassVar[str] = "halves"
    factor: ClassVar[float] = 1.0

    @property
    def weights(self):
        return (self.weight,)

    def sources(self, weight):
        return self.weight, self.other

    def value(self, weight, *tensors):
        import torch
        first, second = tensors
        half = first.shape[1] // 2
        return torch.cat([first[:, :half], second[:, half:]], dim=1)

    def to_json(self):
        return {"factor": 1.0, "halves": [self.weight, self.other]}

    @classmethod
    def from_json(cls, entry, where):
        return cls(*entry["halves"])

class Halves:
    summary = "halves of two layers"
    needs = Need.NOTHING

    def repair(self, context):
        live = context.runner.live
        gone, last = live[context.first], len(live) - 1
        kept = live[context.last] if context.last <= last else live[context.first - 1]
        return Halved(*(f"model.layers.{i}.mlp.down_proj.weight" for i in (kept, gone)))

COMPENSATOR = Halves()
'''
