"""The offline stage: latency of one batch and throughput of many prompts, without a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import answers
from bench.context import Run
from bench.engines.base import Options
from bench.quantities import Spread
from bench.schema import Model, Offline
from bench.sessions import all_up, in_turns, rounds
from bench.statistics import spread

PATIENCE_S = 3600.0
_WARMUP_SEED = 1_000_000


@dataclass(frozen=True)
class Shape:
    """What is generated at once: `mix` is None for latency."""

    batch: int
    input_tokens: int
    output_tokens: int
    mix: str | None = None

    @property
    def name(self) -> str:
        return f"latency-{self.batch}" if self.mix is None else f"throughput-{self.mix}"


class OfflineStage:
    """Runs one engine; the results are in `Run.raw`, and `results` reads them."""

    def __init__(self, run: Run, engine: str) -> None:
        self.run, self.engine, self.stage = run, engine, f"offline, {engine}"

    def shapes(self) -> list[Shape]:
        """Latency at the lengths of the first mix that has any; throughput of each that has."""
        mixes = [m for m in self.run.settings.mixes if m.input_tokens]
        if not mixes:
            return []
        first = mixes[0]
        latency = [
            Shape(batch, first.input_tokens, first.output_tokens)
            for batch in self.run.settings.batches
        ]
        return latency + [Shape(m.prompts, m.input_tokens, m.output_tokens, m.name) for m in mixes]

    def _piece(self, model: Model, shape: Shape, repeat: int) -> str:
        return f"offline/{self.engine}/{model.id}/{shape.name}-r{repeat}"

    def execute(self) -> None:
        """Measures what is not there yet."""
        for models, repeats in rounds(self.run):
            left = [m for m in models if not self.run.failed(m.id, self.stage)]
            pieces = [self._piece(m, s, r) for m in left for s in self.shapes() for r in repeats]
            done = all(self.run.raw.path(piece).exists() for piece in pieces)
            if done and not self._asks(left):
                continue
            self.run.progress.say(f"loading {', '.join(m.id for m in left)} in {self.engine} ...")
            with all_up(self.run, self.stage, left, self._start, self._wait) as up:
                if self._asks(left):
                    answers.ask_all(self.run, up, answers.of_worker)
                for shape in self.shapes():
                    self._shape(shape, up, repeats)
                for model in left:
                    if model.id in up and not self.run.failed(model.id, self.stage):
                        facts = up[model.id].ask({"do": "facts"}, patience_s=60)
                        self.run.raw.write(f"memory/{model.id}-offline-{self.engine}", facts)

    def _asks(self, models: Sequence[Model]) -> bool:
        """Whether answers are left to this stage: where there are no servers."""
        return "serving" in self.run.settings.skipped and answers.missing(self.run, models)

    def _start(self, model: Model) -> Any:
        return self.run.tools.worker(
            "bench.engine_worker", [self.engine, model.path], name=f"{model.path}: {self.engine}",
            log=self.run.log(f"{self.engine}-{model.id}"),
            environment=self.run.placement.environment(),
        )  # fmt: skip

    def _wait(self, model: Model, worker: Any) -> None:
        shapes, settings = self.shapes(), self.run.settings
        options = Options(
            arguments=(*settings.engine_args, *self.run.placement.arguments),
            context=max(
                *(s.input_tokens + s.output_tokens for s in shapes),
                answers.in_context(self.run.asked),
            ),
            batch=max(s.batch for s in shapes), device=self.run.device,
        )  # fmt: skip
        request = {"do": "load", "options": asdict(options)}
        worker.ask(request, patience_s=self.run.startup_timeout_s)
        self.run.progress.say(f"{model.id}: loaded in {self.engine}")

    def _shape(self, shape: Shape, up: dict[str, Any], repeats: range) -> None:
        def ask(worker: Any, seed: int, output_tokens: int) -> float:
            answer = worker.ask(
                {"do": "measure", "batch": shape.batch, "input_tokens": shape.input_tokens,
                 "output_tokens": output_tokens, "seed": seed},
                patience_s=PATIENCE_S,
            )  # fmt: skip
            return answer["seconds"]

        def both(worker: Any, seed: int) -> dict[str, float]:
            found = {"seconds": ask(worker, seed, shape.output_tokens)}
            if shape.mix is None:
                found["prefill_s"] = ask(worker, seed, 1)
            return found

        def warm(model: Model, worker: Any, repeat: int) -> None:
            both(worker, _WARMUP_SEED + repeat)

        def measure(model: Model, worker: Any, repeat: int) -> None:
            name = self._piece(model, shape, repeat)
            if self.run.raw.read(name) is not None:
                return
            found = both(worker, self.run.settings.seed + repeat)
            self.run.raw.write(name, found)
            self.run.progress.say(
                f"{self.engine}, {shape.name}, repeat {repeat + 1}, {model.id}: "
                f"{shape.batch * shape.output_tokens / found['seconds']:.1f} output tokens/s"
            )

        in_turns(self.run, self.stage, up, range(self.run.settings.warmup), warm)
        in_turns(self.run, self.stage, up, repeats, measure)

    def results(self) -> Iterator[Offline]:
        """All shapes, as far as they were measured."""
        for shape in self.shapes():
            for model in self.run.models:
                names = [
                    self._piece(model, shape, repeat) for repeat in range(self.run.settings.repeats)
                ]
                pieces = [self.run.raw.read(name) for name in names]
                if any(pieces):
                    there = [n for n, p in zip(names, pieces, strict=True) if p]
                    yield offline_of(
                        model.id, self.engine, shape, pieces,
                        raw=[self.run.raw.relative(name) for name in there],
                    )  # fmt: skip


def offline_of(
    model: str,
    engine: str,
    shape: Shape,
    pieces: Sequence[dict[str, float] | None],
    *,
    raw: Sequence[str],
) -> Offline:
    """All repeats of one shape of one model.

    Args:
        pieces: by repeat, ``seconds`` and, for latency, ``prefill_s``; None where it failed.
    """
    made = shape.batch * shape.output_tokens
    seconds = [p["seconds"] if p else None for p in pieces]

    def of(values: Sequence[float | None]) -> Spread:
        found = spread(values)
        assert found is not None
        return found

    def per_second(count: int) -> Spread:
        return of([count / s if s else None for s in seconds])

    prefill = decode = None
    if shape.mix is None:
        first = [p["prefill_s"] if p else None for p in pieces]
        prefill, steps = of(first), shape.output_tokens - 1
        if steps:
            decode = spread([
                (s - f) / steps if s is not None and f is not None and s > f else None
                for s, f in zip(seconds, first, strict=True)
            ])  # fmt: skip
    return Offline(
        model=model, engine=engine, measure="latency" if shape.mix is None else "throughput",
        mix=shape.mix, batch=shape.batch, input_tokens=shape.input_tokens,
        output_tokens=shape.output_tokens, seconds=of(seconds),
        output_tokens_per_s=per_second(made),
        total_tokens_per_s=per_second(made + shape.batch * shape.input_tokens),
        prefill_s=prefill, decode_s_per_token=decode, raw=tuple(raw),
    )  # fmt: skip
