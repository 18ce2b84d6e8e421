"""Stand-ins for server, load generator and engines, with known timings and a drifting machine.

A model of L layers takes L milliseconds per token and ten times that for a prompt, times the drift:
every repeat is slower than the one before, for all models alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.server import ServerError
from bench.worker import WorkerError


def layers_of(directory: str) -> int:
    return json.loads((Path(directory) / "config.json").read_text())["num_hidden_layers"]


@dataclass
class World:
    """What happens, in order, and what is to go wrong.

    Attributes:
        events: ``(what, model, ...)``.
        up: servers that are up now.
        most_up: the most there ever were.
        break_after: loads of a model, after which its server is dead.
        refused: models whose server does not come up.
    silent: models whose server has no answer to a prompt.
        interrupt_after: loads after which the user presses Ctrl-C.
        at_once: requests that a server works on at the same time without getting slower.
    """

    events: list[tuple] = field(default_factory=list)
    up: dict[str, Server] = field(default_factory=dict)
    most_up: int = 0
    break_after: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    interrupt_after: int | None = None
    at_once: int = 1

    def server(self, directory: Path, **options: Any) -> Server:
        return Server(self, directory, options)

    def worker(self, module: str, arguments: Any = (), **options: Any) -> Worker:
        return Worker(self, module, list(arguments))

    def loads(self, model: str | None = None) -> list[tuple]:
        """Those that count, in order."""
        return [e for e in self.events if e[0] == "load" and model in (None, e[1])]


class Server:
    def __init__(self, world: World, directory: Path, options: dict) -> None:
        self.world, self.directory, self.model = world, directory, directory.name
        self.url, self.startup_s, self.child = f"http://{self.model}", 1.0, self
        self.pid, self.command, self.dead = 2**31, ["serve", self.model, *options["arguments"]], 0

    def wait_until_up(self, patience_s: float) -> None:
        if self.model in self.world.refused:
            raise ServerError(f"{self.directory}: vLLM ended\nthe tail\nof the log")
        self.world.up[self.url] = self
        self.world.most_up = max(self.world.most_up, len(self.world.up))
        self.world.events.append(("up", self.model))

    def check_alive(self) -> None:
        if self.dead:
            raise ServerError(f"{self.directory}: vLLM was killed (SIGKILL) under load\nits log")

    def get(self, path: str) -> str:
        blocks = 1024 // layers_of(str(self.directory))
        return f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1.0\n'

    def post(self, path: str, body: dict, *, timeout_s: float) -> dict:
        self.world.events.append(("ask", self.model, path, body))
        if self.model in self.world.silent:
            return {"choices": []}
        text = said(layers_of(str(self.directory)), body["prompt"])
        return {"choices": [{"text": text, "finish_reason": "length"}],
                "usage": {"completion_tokens": 64}}  # fmt: skip

    def hang_up(self) -> None:
        self.world.up.pop(self.url, None)

    def stop(self) -> None:
        self.hang_up()


def said(layers: int, prompt: list[int]) -> str:
    """What a server answers."""
    return f"{layers} layers to {prompt}"


def option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments else None


def drift(seed: int) -> float:
    return 1.0 + 0.5 * (seed % 1000)


class Worker:
    """The load generator, or one model in an engine."""

    def __init__(self, world: World, module: str, arguments: list[str]) -> None:
        self.world, self.module, self.arguments = world, module, arguments

    def ask(self, request: dict, *, patience_s: float) -> dict:
        if self.module == "bench.load_worker":
            return self.load(request["arguments"])
        if request["do"] == "facts":
            return {"kv_cache_tokens": None, "peak_bytes": 1000, "peak_of": "process RSS"}
        if request["do"] == "load":
            return {"seconds": 1.0}
        if request["do"] == "answer":
            return {
                "tokens": [layers_of(self.arguments[1]), *request["prompt"], request["stop"][0]]
            }
        layers = layers_of(self.arguments[1])
        self.world.events.append(
            ("offline", Path(self.arguments[1]).name, request["output_tokens"], request["seed"])
        )
        each = layers * drift(request["seed"]) / 1000
        return {"seconds": each * (10 + request["output_tokens"] - 1)}

    def load(self, arguments: list[str]) -> dict:
        server = self.world.up[option(arguments, "--base-url")]
        seed, model = int(option(arguments, "--seed")), server.model
        count, made = (int(option(arguments, n)) for n in ("--num-prompts", "--random-output-len"))
        rate = option(arguments, "--request-rate")
        warm = seed >= 1_000_000
        if not warm:
            level = option(arguments, "--max-concurrency") or float(rate)
            self.world.events.append(("load", model, level, seed, count))
            done = len(self.world.loads(model))
            if self.world.break_after.get(model, 10**9) < done:
                server.dead = True
                raise WorkerError("connection refused")
            if self.world.interrupt_after == len(self.world.loads()):
                self.world.interrupt_after = None
                raise KeyboardInterrupt
        document = requests(layers_of(str(server.directory)), count, made, drift(seed))
        in_flight = int(option(arguments, "--max-concurrency") or 1)
        document["duration"] /= min(in_flight, self.world.at_once)
        path = Path(option(arguments, "--result-dir")) / option(arguments, "--result-filename")
        path.write_text(json.dumps({**document, "generated_texts": ["x"] * count}))
        return {"done": True}

    def hang_up(self) -> None: ...
    def stop(self) -> None: ...

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None: ...


def requests(layers: int, count: int, made: int, slower: float) -> dict:
    """As vLLM's load generator writes them; request i waits i milliseconds, the last one fails."""
    step = layers * slower / 1000
    ttfts = [10 * step + i / 1000 for i in range(count - 1)]
    return {
        "duration": count * step * made,
        "ttfts": [*ttfts, 0.0],
        "itls": [*([step] * (made - 1) for _ in ttfts), []],
        "input_lens": [7] * count,
        "output_lens": [*([made] * (count - 1)), 0],
        "errors": [*([""] * (count - 1)), "reset by peer"],
    }
