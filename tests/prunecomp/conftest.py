"""Shorthands for the tests of the package."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors are fastest on one thread, and its sums do not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quiet():
    from prunecomp.progress import Progress

    return Progress(quiet=True)


@pytest.fixture(scope="session")
def make_plan(tiny_directory, tiny_tokens, quiet):
    """``make_plan(name, layers=..., **PlanRequest fields)`` on the tiny tokens, by default fp32.

    Keyword arguments that belong to `pipeline.make_plan` itself are passed on.
    """
    from prunecomp import pipeline
    from prunecomp.checkpoint.reader import Checkpoint

    def make(name: str, *, directory=None, resume=None, on_round=lambda plan: None, **options):
        defaults = {"calibration": str(tiny_tokens), "dtype": "float32", "device": "cpu"}
        return pipeline.make_plan(
            Checkpoint(directory or tiny_directory(name)),
            pipeline.PlanRequest(**{**defaults, **options}),
            name=name, progress=quiet, resume=resume, on_round=on_round,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def hand_plan():
    """``hand_plan(checkpoint, [(removed, factor), ...], fold)``: a plan that nothing measured."""
    from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
    from prunecomp.rounds import PruneRound, RemoveSpan, Scale

    def make(checkpoint, rounds, fold="downstream"):
        return PrunePlan(
            source=SourceModel(
                "hand", checkpoint.family.model_type, checkpoint.num_hidden_layers,
                checkpoint.sha256(),
            ),
            recipe=Recipe(
                "bi", "iterative", "magnitude", fold, sum(len(r) for r, _ in rounds), 0, 0,
                "float32", "cpu",
            ),
            calibration=CalibrationRecord("hand", 1, 2, 0, ""),
            rounds=tuple(
                PruneRound(RemoveSpan(tuple(r)), Scale(s), {r[0]: 0.0}) for r, s in rounds
            ),
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def written(tmp_path_factory, hand_plan, quiet):
    """``written(directory, rounds, fold)``: the directory of that plan, through `apply_plan`.

    Always a new one, which the test may spoil.
    """
    from prunecomp import pipeline
    from prunecomp.checkpoint.reader import Checkpoint

    def write(directory, rounds, fold="downstream"):
        checkpoint = Checkpoint(directory)
        output = tmp_path_factory.mktemp("written") / "model"
        pipeline.apply_plan(checkpoint, hand_plan(checkpoint, rounds, fold), output, progress=quiet)
        return output

    return write
