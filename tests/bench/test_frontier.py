"""Every depth of one plan, against transformers on written models; stopping and going on."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import cli
from bench import frontier
from bench.accuracy.run import Outcome, Request
from bench.frontier import Criterion, Study, draw, read_frontier, recommend
from bench.qualities import Accuracy, MeanRetained
from bench.quantities import Estimate
from bench.schema import FrontierPoint
from prunecomp import machine, pipeline
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError
from prunecomp.pipeline import PlanRequest
from prunecomp.plan import read_plan
from prunecomp.progress import Progress

DEPTH = 3
QUIET = Progress(quiet=True)


def points(*ratios: float, retained: tuple[float, ...] = ()) -> list[FrontierPoint]:
    kept = [Estimate(r, 0.01) for r in retained] or [None] * len(ratios)
    return [FrontierPoint(k, (), 10 * r, r, kept[k]) for k, r in enumerate(ratios)]


def test_the_deepest_cut_that_is_within_the_limit_itself():
    found = points(1.0, 1.1, 1.3, 1.15, 1.9, retained=(1.0, 0.99, 0.8, 0.9, 0.95))
    assert recommend(found, Criterion(max_ppl_increase=0.2)) == 3
    assert recommend(found, Criterion(max_ppl_increase=0.1)) == 1
    assert recommend(found, Criterion(max_ppl_increase=0.05)) is None
    assert recommend(found, Criterion(min_retained=0.9)) == 4
    assert recommend(found, Criterion(max_ppl_increase=0.2, min_retained=0.95)) == 1
    assert recommend(points(1.0, 1.0), Criterion(min_retained=0.5)) is None  # not measured


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, factor in (("calibration", 31), ("evaluation", 57)):
        lines = (f"{name} {i}: {i * factor % 89} of {i * i % 71}\n" for i in range(40))
        (folder / f"{name}.txt").write_text("".join(lines))
    return {name: str(folder / f"{name}.txt") for name in ("calibration", "evaluation")}


@pytest.fixture
def study(text_model, texts, tmp_path):
    """``study(**options)``: a study in one and the same directory."""

    def make(
        *, tasks: Request | None = None, progress: Progress = QUIET, overwrite: bool = False,
        **options,
    ) -> Study:  # fmt: skip
        request = PlanRequest(**{
            "layers": DEPTH, "samples": 4, "seq_len": 16, "device": "cpu", "dtype": "float32",
            **texts, **options,
        })  # fmt: skip
        made = Study(
            Checkpoint(text_model), request, tmp_path / "frontier", name="tiny", tasks=tasks,
            progress=progress,
        )  # fmt: skip
        made.check()
        made.open(overwrite=overwrite)
        return made

    return make


def test_overwrite_takes_what_is_ours(study, tmp_path):
    """A model that was written into the directory of its frontier is no part of it."""
    study()
    mine = tmp_path / "frontier" / "minus-4" / "config.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    with pytest.raises(UsageError, match="also holds minus-4; move that away"):
        study(seed=1, overwrite=True)
    assert {path.name for path in mine.parents[1].iterdir()} == {"request.json", "minus-4"}
    mine.parent.rename(tmp_path / "minus-4")
    (tmp_path / "frontier" / "plan.json").write_text("{}")
    study(seed=1, overwrite=True)
    assert {path.name for path in (tmp_path / "frontier").iterdir()} == {"request.json"}


def test_every_depth_has_the_perplexity_of_the_model_that_is_written(study, text_model, tmp_path):
    one = study()
    found = one.run(Criterion(max_ppl_increase=0.2))
    assert [p.layers_removed for p in found.points] == [0, 1, 2, 3]
    plan = read_plan(tmp_path / "frontier" / found.plan)
    _, text = pipeline.load_texts(one.checkpoint, one.request)
    for point in found.points:
        path = text_model
        if point.layers_removed:
            path = tmp_path / f"minus-{point.layers_removed}"
            part = plan.prefix(point.layers_removed)
            pipeline.apply_plan(one.checkpoint, part, path, progress=QUIET)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            loss = model(text.input_ids, labels=text.input_ids).loss
        assert point.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert point.ratio == point.perplexity / found.points[0].perplexity
        gone = [r.removed[0] for r in plan.rounds[: point.layers_removed]]
        assert sorted(point.removed) == sorted(gone)
        assert len(point.removed) == point.layers_removed
    assert read_frontier(tmp_path / "frontier") == found


class Stops(Progress):
    """Is interrupted when it has said something."""

    def __init__(self, word: str) -> None:
        super().__init__(quiet=True)
        self.word = word

    def say(self, message: str) -> None:
        if self.word in message:
            raise KeyboardInterrupt


def test_goes_on_where_it_was_stopped(study, tmp_path, monkeypatch):
    criterion = Criterion(max_ppl_increase=0.2)
    with pytest.raises(KeyboardInterrupt):
        study(progress=Stops("round 3")).run(criterion)
    assert len(read_plan(tmp_path / "frontier" / "plan.json").rounds) == 2
    with pytest.raises(KeyboardInterrupt):
        study(progress=Stops("2 layers removed")).run(criterion)
    found = study().run(criterion)
    monkeypatch.setattr(pipeline, "make_plan", None)  # nothing of this is done again
    monkeypatch.setattr(pipeline, "load_texts", None)
    other = study().run(Criterion(max_ppl_increase=1e9))
    assert other.points == found.points
    assert other.recommended == DEPTH
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "frontier")
    assert study().run(criterion) == found  # as if it had never been stopped


def test_a_directory_of_something_else_is_left_alone(study, tmp_path):
    study().run(Criterion(max_ppl_increase=0.2))
    with pytest.raises(UsageError, match="of other options"):
        study(metric="ppl")
    (tmp_path / "frontier" / "request.json").write_text("{}")
    with pytest.raises(UsageError, match="holds something else"):
        study()


def test_retained_accuracy_of_written_models(study, text_model, tmp_path, monkeypatch):
    seen = []

    def fake(models, request, *, output, progress):
        (base, path), (_, name) = models.values(), models
        assert base == text_model
        left = AutoConfig.from_pretrained(path).num_hidden_layers
        seen.append(path)
        means = (MeanRetained(name, "quick", left / 8, 0.01), MeanRetained(name, "other", 0.1, 0.1))
        return Outcome(Accuracy("hf", None, mean_retained=means), (), (), ())

    monkeypatch.setattr(frontier.accuracy, "run", fake)
    found = study(tasks=Request(device="cpu")).run(Criterion(min_retained=0.7))
    assert [p.retained.value for p in found.points] == [1.0, 7 / 8, 6 / 8, 5 / 8]
    assert found.recommended == 2
    assert len(seen) == DEPTH
    assert not any(path.exists() for path in seen)
    names = {path.name for path in draw(found, tmp_path)}
    assert names == {"frontier.svg", "frontier-retained.svg"}


def test_command(text_model, texts, tmp_path, capsys):
    common = [
        "frontier", str(text_model), "--max-layers", "2", "-o", str(tmp_path / "out"), "--samples",
        "4", "--seq-len", "16", "--device", "cpu", "--calibration", texts["calibration"], "-q",
    ]  # fmt: skip
    assert cli.main([*common, "--metric", "cl", "--evaluation", texts["evaluation"]]) == 2
    assert "choose another metric" in capsys.readouterr().err
    assert cli.main([*common, "--max-ppl-increase", "-1"]) == 2
    assert cli.main([*common, "--min-retained", "2"]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    arguments = [*common, "--evaluation", texts["evaluation"], "--max-ppl-increase", "1e9"]
    assert cli.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recommended"] == 2
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "remove 2 layers" in said
    assert "--rounds 2" in said
    assert (tmp_path / "out" / "frontier.svg").read_text().lstrip().startswith("<")


@pytest.mark.parametrize(("text", "message"), [
    (None, "No such file"), ("{", "cannot read it as JSON"), ("{}", "is not a frontier"),
    ('{"kind": "prunecomp-frontier", "schema_version": 7}', "schema version 7"),
    ('{"kind": "prunecomp-frontier", "schema_version": 1}', "must be a JSON object"),
])  # fmt: skip
def test_files_that_are_no_frontier(tmp_path, text, message):
    file = Path(tmp_path / "frontier.json")
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_frontier(file)


def test_depths_are_measured_as_the_plan_was_made(study, monkeypatch):
    """Within ``--max-memory``, layer by layer, by the one that holds models for all."""
    estimated, models = machine.estimate_memory, []

    def streamed(*arguments, **options):
        return dataclasses.replace(estimated(*arguments, **options), mode="streamed")

    monkeypatch.setattr(machine, "estimate_memory", streamed)
    init = machine.PlannedModel.__init__
    monkeypatch.setattr(
        machine.PlannedModel, "__init__",
        lambda self, *a, **k: models.append(k["resident"]) or init(self, *a, **k),
    )  # fmt: skip
    plain = study()
    plan = plain.plan()
    found = plain.perplexities(plan)
    assert models == [False, False]  # of the plan, and of the depths
    assert found[str(DEPTH)] == pytest.approx(
        plan.perplexity[f"evaluation ({plain.request.evaluation})"]["pruned"], rel=1e-6
    )


def test_memory_that_does_not_do(study):
    """Said in one line, also where the plan is there and only depths are to be measured."""
    made = study()
    plan = made.plan()
    made.request = dataclasses.replace(made.request, max_memory="1MiB")
    with pytest.raises(UsageError, match=r"--max-memory 0.00GiB: even with one layer at a time"):
        made.perplexities(plan)
