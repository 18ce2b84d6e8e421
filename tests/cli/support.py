"""A tiny model written by hand, and processes that run commands on it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from prunecomp.console import SILENCE

REPOSITORY = Path(__file__).parents[2]
DEPTH, VOCABULARY, CONTEXT = 6, 260, 64
INDEX = "model.safetensors.index.json"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": DEPTH,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
}


def weights() -> dict:
    import torch

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int):
        return (torch.randn(shape, generator=generator) * 0.1).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(VOCABULARY, 32)}
    for i in range(DEPTH):
        layer = {
            "self_attn.q_proj": random(32, 32), "self_attn.k_proj": random(16, 32),
            "self_attn.v_proj": random(16, 32), "self_attn.o_proj": random(32, 32),
            "mlp.gate_proj": random(48, 32), "mlp.up_proj": random(48, 32),
            "mlp.down_proj": random(32, 48) * (1 + i % 3),
            "input_layernorm": 1 + random(32), "post_attention_layernorm": 1 + random(32),
        }  # fmt: skip
        tensors |= {f"model.layers.{i}.{name}.weight": t for name, t in layer.items()}
    return {
        **tensors,
        "model.norm.weight": 1 + random(32),
        "lm_head.weight": random(VOCABULARY, 32),
    }


def write_tokenizer(directory: Path) -> None:
    """One token per byte, after ``<|end|>``; its length limit is that of the context."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",
        "model_max_length": CONTEXT,
    }))  # fmt: skip


def tensors(path: Path) -> dict:
    from safetensors.torch import load_file

    found = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        found |= load_file(file)
    return found


def put(path: Path, found: dict) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file(found, path, metadata={"format": "pt"})


def changed(found: dict) -> dict:
    return {name: tensor + 0.25 for name, tensor in found.items()}


def shard(model: Path, parts: list[dict], folder: str = "") -> list[str]:
    """Adds shards and their index; returns the names of the shards."""
    names = [f"{folder}model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
             for i in range(len(parts))]  # fmt: skip
    for name, part in zip(names, parts, strict=True):
        put(model / name, part)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / INDEX).write_text(json.dumps(document))
    return names


def halves(found: dict) -> list[dict]:
    keys = list(found)
    return [{k: found[k] for k in keys[:20]}, {k: found[k] for k in keys[20:]}]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def tree(directory: Path) -> dict[str, tuple]:
    """Everything below `directory`, with what shows a change."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_ino, data)
    return found


def one_line(err: str) -> str:
    """The one line of an error."""
    lines = err.splitlines(keepends=True)
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    assert lines[0].endswith("\n"), err
    return lines[0]


@contextlib.contextmanager
def largest_file(nbytes: int):
    """Writing more fails as it does on a full disk: first short, then with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


#: For `Warm.start(first=...)`: file permissions hold for the process even if it is root's.
MORTAL = """
import ctypes
libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
rights = (ctypes.c_uint32 * 6)()
assert libc.capget(header, rights) == 0
for i in range(3):
    rights[i] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
assert libc.capset(header, rights) == 0
"""


class Warm:
    """A process that has imported what a command needs, and forks one for every command."""

    _SERVER = """
import json, os, signal, sys, traceback
import cli, prunecomp.pipeline, prunecomp.calibration.runner, prunecomp.calibration.view
import datasets, torch, transformers.models.llama.modeling_llama
cli.build_parser()  # imports the commands
torch.set_num_threads(1)  # faster for a model as small as this
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job["cwd"])
        for number, target in enumerate(["/dev/null", job["out"], job["err"]]):
            os.dup2(os.open(target, os.O_RDWR | os.O_CREAT), number)
        code = 1
        try:
            exec(job["first"])
            code = cli.main(job["arguments"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)  # taking down the interpreter would take seconds
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._SERVER], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **SILENCE},
        )  # fmt: skip

    def start(self, arguments, *, cwd: Path, first: str = "", out=None, err=None) -> Running:
        """Starts a command; `first` is Python that the process runs before it."""
        paths = [Path(out or cwd / "stdout"), Path(err or cwd / "stderr")]
        job = {
            "arguments": [str(a) for a in arguments], "cwd": str(cwd), "first": first,
            "out": str(paths[0]), "err": str(paths[1]),
        }  # fmt: skip
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Running(int(self._process.stdout.readline()), self._process.stdout, *paths)

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass(frozen=True)
class Running:
    """A command that runs."""

    pid: int
    codes: object
    out: Path
    err: Path

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, condition, seconds: float = 120.0) -> None:
        """Until ``condition(stderr so far)`` holds."""
        end = time.monotonic() + seconds
        while not condition(self.err.read_text() if self.err.exists() else ""):
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.005)

    def end(self) -> Ended:
        code = int(self.codes.readline())
        return Ended(code, self.out.read_text(), self.err.read_text())
