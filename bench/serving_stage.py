"""The serving stage: every load on every model, models in turns, pieces kept as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import answers
from bench.conditions import Mix
from bench.context import Run
from bench.memory import kv_cache_tokens, peak_of_tree
from bench.schema import Model, Serving
from bench.server import ServerError
from bench.serving import kept, load_arguments, requests_of, serving_of
from bench.sessions import all_up, in_turns, rounds
from bench.worker import WorkerError
from bench.workload import Point

STAGE = "serving"
RATES_FROM = (
    "{} of the requests/s that the base reached in the closed loop at the highest concurrency"
)
LOAD_PATIENCE_S = 3600.0
#: Where no concurrency is given, it is doubled until that gains the base less than this.
LEAST_GAIN, MOST_IN_FLIGHT = 1.1, 1024
_WARM_UP_IN_FLIGHT = 8
_WARMUP_SEED = 1_000_000


class ServingStage:
    """Runs it; the results are in `Run.raw`, and `results` reads them."""

    def __init__(self, run: Run, *, shares: Sequence[float] = ()) -> None:
        """Takes the run.

        Args:
            shares: of the base's saturated rate, for the open loop; it has besides those the rates
                in the settings, and there is none if there are neither.
        """
        self.run, self._shares = run, tuple(shares)
        self._loader: Any = None

    def _piece(self, model: Model, point: Point, repeat: int) -> str:
        return f"serving/{model.id}/{point.name}-r{repeat}"

    def _closed(self, mix: Mix) -> list[Point]:
        """As given; else up to where the base is saturated, as far as that is known by now."""
        if given := self.run.settings.concurrency:
            return [Point(mix, concurrency=c) for c in given]
        points, before, level = [], 0.0, 1
        while level <= MOST_IN_FLIGHT:
            points.append(Point(mix, concurrency=level))
            rate = self._base_rate(points[-1])
            if rate is None or rate < LEAST_GAIN * before:
                break
            before, level = rate, 2 * level
        return points

    def _base_rate(self, point: Point) -> float | None:
        """Requests per second of the base's first finished repeat."""
        for repeat in range(self.run.settings.repeats):
            document = self.run.raw.read(self._piece(self.run.models[0], point, repeat))
            if document is not None:
                found = requests_of(document, self.run.settings.slo)
                if found.completed:
                    return found.completed / found.duration_s
        return None

    def _open_points(self, mix: Mix) -> list[Point]:
        """At the rates that were given, or that follow from the base; none if that failed."""
        rates = list(self.run.settings.request_rates)
        if self._shares and (saturated := self._saturation(mix)):
            rates += [saturated * share for share in self._shares]
        return [Point(mix, request_rate=float(f"{rate:.4g}")) for rate in rates]

    def _saturation(self, mix: Mix) -> float | None:
        """Requests per second of the base's first finished repeat at the highest concurrency."""
        name = f"serving/saturation-{mix.name}"
        if (known := self.run.raw.read(name)) is not None:
            return known["requests_per_s"]
        point = max(self._closed(mix), key=lambda p: p.concurrency or 0)
        rate = self._base_rate(point)
        if rate is not None:
            self.run.raw.write(name, {"requests_per_s": rate})  # the same when resumed
        return rate

    def _missing(self, models: Sequence[Model], repeats: range) -> bool:
        settings = self.run.settings
        for mix in settings.mixes:
            points = self._closed(mix) + self._open_points(mix)
            if self._shares and not self._saturation(mix):
                return True
            for model in models:
                names = (self._piece(model, p, r) for p in points for r in repeats)
                if any(not self.run.raw.path(name).exists() for name in names):
                    return True
        return False

    def execute(self) -> None:
        """Measures what is not there yet."""
        with contextlib.ExitStack() as stack:
            for models, repeats in rounds(self.run):
                left = [m for m in models if not self.run.failed(m.id, STAGE)]
                if left and (self._missing(left, repeats) or answers.missing(self.run, left)):
                    self._session(left, repeats, stack)
        mixes = self.run.settings.mixes if self._shares else ()
        if without := [mix.name for mix in mixes if not self._saturation(mix)]:
            self.run.warnings.append(
                f"{', '.join(without)}: the base reached no rate to derive those of the open loop "
                "from"
            )

    def _session(self, models: list[Model], repeats: range, stack: contextlib.ExitStack) -> None:
        self.run.progress.say(f"starting vLLM for {', '.join(m.id for m in models)} ...")
        with all_up(self.run, STAGE, models, self._start, self._wait) as up:
            if up and self._loader is None:
                self._loader = stack.enter_context(self.run.tools.worker(
                    "bench.load_worker", name="vLLM's load generator", log=self.run.log("load"),
                    environment=self.run.placement.environment(),
                ))  # fmt: skip
            answers.ask_all(self.run, up, answers.of_server)
            for mix in self.run.settings.mixes:
                self._warm_up(mix, up, models)
                done: list[Point] = []
                while left := [p for p in self._closed(mix) if p not in done]:
                    self._all(left[0], up, repeats)
                    done.append(left[0])
                for point in self._open_points(mix):
                    self._all(point, up, repeats)
            for model in models:
                if model.id in up and not self.run.failed(model.id, STAGE):
                    self._facts(model, up[model.id])

    def _start(self, model: Model) -> Any:
        number, arguments = self.run.models.index(model), self.run.settings.engine_args
        server = self.run.tools.server(
            Path(model.path), log=self.run.log(f"server-{model.id}"),
            arguments=[*arguments, *self.run.placement.arguments],
            port=None if self.run.port is None else self.run.port + number,
            environment=self.run.placement.environment(),
        )  # fmt: skip
        self.run.note_command(server.command)
        return server

    def _wait(self, model: Model, server: Any) -> None:
        server.wait_until_up(self.run.startup_timeout_s)
        self.run.progress.say(f"{model.id}: up after {server.startup_s:.0f} s at {server.url}")

    def _all(self, point: Point, up: dict[str, Any], repeats: range) -> None:
        def measure(model: Model, server: Any, repeat: int) -> None:
            name = self._piece(model, point, repeat)
            if self.run.raw.read(name) is not None:
                return
            document = self._load(
                point, model, server, prompts=point.prompts,
                seed=self.run.settings.seed + repeat, name=name,
            )  # fmt: skip
            self.run.raw.write(name, kept(document))
            found = requests_of(document, self.run.settings.slo)
            self.run.progress.say(
                f"{point}, repeat {repeat + 1}, {model.id}: "
                f"{found.output_tokens / found.duration_s:.1f} output tokens/s"
            )

        in_turns(self.run, STAGE, up, repeats, measure)

    def _warm_up(self, mix: Mix, up: dict[str, Any], models: Sequence[Model]) -> None:
        """Unmeasured requests, as many at once as there will be."""
        most = max(self.run.settings.concurrency, default=_WARM_UP_IN_FLIGHT)
        point = Point(mix, concurrency=most)

        def warm(model: Model, server: Any, repeat: int) -> None:
            self._load(
                point, model, server, prompts=most, seed=_WARMUP_SEED + repeat,
                name=f"serving/{model.id}/warm-up",
            )  # fmt: skip

        in_turns(self.run, STAGE, up, range(self.run.settings.warmup), warm)

    def _load(
        self, point: Point, model: Model, server: Any, *, prompts: int, seed: int, name: str
    ) -> dict[str, Any]:  # fmt: skip
        """Runs the load generator once; returns what it wrote."""
        result = self.run.raw.path(name).with_suffix(".partial")
        result.parent.mkdir(parents=True, exist_ok=True)
        arguments = load_arguments(
            point, server, tokenizer=Path(model.path), prompts=prompts, seed=seed,
            slo=self.run.settings.slo, result=result,
        )  # fmt: skip
        self.run.note_command(["vllm", "bench", "serve", *arguments])
        try:
            self._loader.ask({"arguments": arguments}, patience_s=LOAD_PATIENCE_S)
            server.check_alive()
            document = json.loads(result.read_text(encoding="utf-8"))
        except WorkerError:
            server.check_alive()  # its end is the better explanation
            raise
        finally:
            result.unlink(missing_ok=True)
        if not requests_of(document, self.run.settings.slo).completed:
            why = next((e for e in document["errors"] if e), "no reason given")
            reason = " ".join(str(why).split())[-300:]
            raise ServerError(f"{server.directory}: every request failed: {reason}")
        return document

    def _facts(self, model: Model, server: Any) -> None:
        with contextlib.suppress(OSError):
            facts = {"kv_cache_tokens": kv_cache_tokens(server.get("/metrics"))}
            self.run.raw.write(
                f"memory/{model.id}-vllm",
                {**facts, **peak_of_tree(server.child.pid), "startup_s": server.startup_s},
            )

    def results(self) -> Iterator[Serving]:
        """All load points, as far as they were measured."""
        settings, raw = self.run.settings, self.run.raw
        for mix in settings.mixes:
            for point in self._closed(mix) + self._open_points(mix):
                for model in self.run.models:
                    names = [self._piece(model, point, r) for r in range(settings.repeats)]
                    documents = [raw.read(name) for name in names]
                    there = [raw.relative(n) for n, d in zip(names, documents, strict=True) if d]
                    if there or self.run.failed(model.id, STAGE):
                        yield serving_of(model.id, point, documents, settings.slo, there)
