"""The command line as a user meets it.

`cli` runs commands in this process, `refused` those that must fail without a trace, and `warm`
runs them in processes of their own, forked from one that has imported torch already.
"""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import CONFIG, Ended, Warm, one_line, tree, weights, write_tokenizer


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A model directory that nobody changes."""
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("pristine") / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    save_file(weights(), directory / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(directory)
    return directory


@pytest.fixture
def model(pristine, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def edit_config(model):
    """``edit_config(key=value)`` changes the copy's config; None removes a key."""

    def edit(**changes) -> Path:
        config = json.loads((model / "config.json").read_text()) | changes
        config = {k: v for k, v in config.items() if v is not None}
        (model / "config.json").write_text(json.dumps(config))
        return model

    return edit


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A calibration text of 5400 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("def f(x):\n    return x + 1\n" * 200)
    return path


@pytest.fixture
def small(text) -> list[str]:
    """The options of a plan that is made in half a second."""
    return ["--calibration", str(text), "--samples", "4", "--seq-len", "32"]


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """``cli("compress", ...)`` in this process, in an empty working directory."""
    import cli

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments) -> Ended:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as end:  # of argparse
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli, tmp_path):
    """``refused(*command, says=..., code=2)``: one line, nothing on stdout, nothing changed."""

    def check(*arguments, says: str | tuple[str, ...] = (), code: int = 2) -> str:
        before = tree(tmp_path)
        ended = cli(*arguments)
        line = one_line(ended.err)
        assert ended.out == ""
        assert ended.code == code, line
        for words in [says] if isinstance(says, str) else says:
            assert words in line
        assert tree(tmp_path) == before
        return line

    return check


@pytest.fixture
def refused_compress(refused, small, tmp_path):
    """The same of ``compress MODEL -o .../deep/out --layers 2``; later options win."""

    def check(model, *options, output=None, **expected) -> str:
        output = tmp_path / "deep" / "out" if output is None else output
        return refused(
            "compress", model, "-q", "-o", output, "--layers", 2, *small, *options, **expected
        )

    return check


@pytest.fixture
def plan_file(cli, model, small, tmp_path) -> Path:
    """A plan of three rounds for `model`."""
    path = tmp_path / "plan.json"
    ended = cli("plan", model, "-q", "-o", path, "--layers", 3, *small)
    assert ended.code == 0, ended.err
    return path


@pytest.fixture(scope="session")
def planned(pristine, text, tmp_path_factory) -> dict:
    """The content of a plan of three rounds for every copy of `pristine`."""
    import cli

    path = tmp_path_factory.mktemp("planned") / "plan.json"
    options = ["--layers", "3", "--calibration", str(text), "--samples", "4", "--seq-len", "32"]
    assert cli.main(["plan", str(pristine), "-q", "-o", str(path), *options]) == 0
    return json.loads(path.read_text())


@pytest.fixture
def apply(refused, model, tmp_path):
    """``apply(plan, says=...)``: `plan` is text, or a document to be written as JSON."""

    def check(plan, *options, **expected) -> str:
        path = tmp_path / "bad.json"
        path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
        out = tmp_path / "new" / "out"
        return refused("apply", model, path, "-o", out, *options, **expected)

    return check


@pytest.fixture
def own(planned, model):
    """A good plan for the copy, to be damaged."""
    return copy.deepcopy(planned)


@pytest.fixture(scope="session")
def warm():
    server = Warm()
    yield server
    server.stop()


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A directory for what a process says, apart from where it works."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    return path


@pytest.fixture
def terminal_signals():
    """Signals reach handlers as if this test were run from a terminal."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers[1:]:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB; most need no such luxury, but this is the real thing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def added(tmp_path_factory, monkeypatch):
    """``--compensation whole`` and ``--compensation halves``, each one more file."""
    import prunecomp.compensators as package
    from prunecomp.rounds import REPAIRS
    from tests.cli.repairs import HALVES, WHOLE

    folder = tmp_path_factory.mktemp("added")
    for name, code in {"whole": WHOLE, "halves": HALVES}.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    monkeypatch.setitem(
        REPAIRS, "halves", importlib.import_module("prunecomp.compensators.halves").Halved
    )
    yield
    for name in ("whole", "halves"):
        if sys.modules.pop(f"prunecomp.compensators.{name}", None):
            delattr(package, name)


@pytest.fixture
def sharded(pristine, tmp_path) -> Path:
    """The model in several files, so that sources lie apart."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(pristine, dtype=torch.bfloat16)
    model.save_pretrained(path, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(pristine).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def repaired(cli, added, sharded, small, tmp_path):
    """``repaired(compensation, *options)``: the file of a plan, beside which its sidecars lie."""

    def make(compensation: str, *options, layers: int = 3, name: str = "plan") -> Path:
        path = tmp_path / name / "plan.json"
        ended = cli("plan", sharded, "-q", "-o", path, "--layers", layers, *small,
                    "--compensation", compensation, *options)  # fmt: skip
        assert (ended.code, ended.err) == (0, "")
        return path

    return make
