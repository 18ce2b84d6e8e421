"""Options that ask for what cannot be done: exit code 2, before anything runs."""

from __future__ import annotations

import pytest

from tests.cli.support import DEPTH


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "0"], "remove at least one"),
        (["--layers", "-3"], "remove at least one"),
        (["--layers", str(DEPTH)], "cannot remove 6 of 6 layers"),
        (["--layers", str(DEPTH + 1)], "cannot remove 7 of 6 layers"),
        (["--layers", "3", "--protect-first", "2", "--protect-last", "2"], "are protected"),
        (["--layers", "1", "--metric", "mag"], "the first 4 and the last 2 are protected"),
        (["--layers", "1", "--metric", "taylor"], "--protect-first"),
        (["--layers", "1", "--protect-first", "-1"], "must not be negative"),
        (["--ratio", "0"], "between 0 and 1"),
        (["--ratio", "1"], "between 0 and 1"),
        (["--ratio", "1.5"], "between 0 and 1"),
        (["--ratio", "-0.5"], "between 0 and 1"),
        (["--ratio", "nan"], "between 0 and 1"),
        (["--ratio", "inf"], "between 0 and 1"),
        (["--ratio", "0.01"], "less than one layer"),
        (["--ratio", "0.99"], "cannot remove 6 of 6 layers"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("command", ["compress", "plan"])
def test_how_many(refused, model, tmp_path, command, options, says):
    refused(command, model, "-o", tmp_path / "out", *options, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "ppll"], ("unknown metric 'ppll'", "did you mean 'ppl'", "taylor")),
        (["--metric", "base"], "unknown metric 'base'"),
        (["--metric", ""], "unknown metric ''"),
        (["--metric", "../bi"], "unknown metric '../bi'"),
        (["--compensation", "magnitud"], ("unknown compensation", "did you mean 'magnitude'")),
        (["--compensation", "x"], "choose from least-squares, magnitude, none"),
        (["--device", "gpu"], ("--device gpu", "auto, cpu or cuda")),
        (["--device", ""], "use auto, cpu or cuda"),
        (["--device", "mps"], "not supported"),
        (["--device", "cuda:x"], "use auto, cpu or cuda"),
        (["--device", "cuda:-1"], "use auto, cpu or cuda"),
        (["--device", "cuda:99"], "CUDA device(s); use auto or cpu"),
        (["--dtype", "bf16"], "choose from auto, float32, bfloat16, float16"),
        (["--samples", "0"], "give larger --samples"),
        (["--samples", "-1"], "give larger --samples"),
        (["--seq-len", "1"], "give larger --samples or --seq-len"),
        (["--seq-len", "-5"], "give larger --samples or --seq-len"),
        (["--seq-len", "65"], ("context of 64", "smaller --seq-len")),
        (["--seq-len", "9" * 30], ("context of 64", "smaller --seq-len")),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "9" * 30], "2^63 - 1"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_other_values(refused_compress, model, options, says):
    refused_compress(model, *options, says=says)


def test_cuda_without_a_gpu(refused_compress, model, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    refused_compress(model, "--device", "cuda", says="this machine has 0 CUDA device(s)")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "one of the arguments --layers --ratio is required"),
        (["--layers", "1", "--ratio", "0.2"], "not allowed with"),
        (["--layers", "2.5"], "argument --layers"),
        (["--layers", "1", "--strategy", "oneshot"], "one-shot"),
        (["--layers", "1", "--fold", "up"], "upstream"),
        (["--layers", "1", "--batch-size", "0"], "argument --batch-size"),
        (["--layers", "1", "--batch-size", "-1"], "argument --batch-size"),
        (["--layers", "1", "--batch-size", "9" * 30], "argument --batch-size"),
        (["--layers", "1", "--bogus"], "unrecognized arguments: --bogus"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_usage(cli, model, tmp_path, options, says):
    """These are argparse's own: usage, and then one line."""
    ended = cli("compress", model, "-o", tmp_path / "out", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: ")
    assert ended.err.splitlines()[-1].startswith("cli.py")
    assert says in ended.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["prune"], ["compress"], ["apply", "model"]])
def test_usage_of_commands(cli, arguments):
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: ")


@pytest.mark.parametrize("batch_size", ["1", "3", "1000"])
def test_any_batch_size_will_do(cli, model, small, tmp_path, batch_size):
    ended = cli("compress", model, "-q", "-o", tmp_path / "out", "--layers", 1, *small,
                "--batch-size", batch_size)  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
