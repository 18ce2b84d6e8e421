"""Plans that were edited: whatever `plan` would have refused, `apply` and `export` refuse."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.cli.support import DEPTH


def test_factors_whose_product_no_dtype_holds(apply, own):
    for factor in (1e9, 1e-9):
        for r in own["rounds"]:
            r["factor"] = factor
        apply(own, says=("bad.json: the factors of the rounds come to", "make the plan again"))
    for factor in (1e200, 1e-200, 5e-324, 10**400):
        own["rounds"][0]["factor"] = factor
        apply(own, says=("bad.json", "again"))


@pytest.mark.parametrize("factor", [1e15, 1e-15])
@pytest.mark.parametrize("command", [["apply"], ["export", "--plan"]])
def test_weights_that_would_vanish(refused, model, own, tmp_path, factor, command):
    """In float16, whose range a factor can leave that is within reason for others."""
    half_precision(model)
    own["source"]["sha256"] = digests(model)
    for r in own["rounds"]:
        r["factor"] = factor ** (1 / 3)
    own["rounds"] = [{**r, "removed": [i]} for i, r in enumerate(own["rounds"])]
    del own["removed_layers"], own["kept_layers"]
    (tmp_path / "q.json").write_text(json.dumps(own))
    name, *option = command
    refused(name, model, *option, tmp_path / "q.json", "-o", tmp_path / "out", code=1,
            says=("torch.float16", "times 1e"))  # fmt: skip


def half_precision(model) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    save_file({k: v.half() for k, v in tensors.items()}, model / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = json.loads((model / "config.json").read_text()) | {"torch_dtype": "float16"}
    (model / "config.json").write_text(json.dumps(config))
    assert torch.finfo(torch.float16).max == 65504


def digests(model) -> dict[str, str]:
    return {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }


@pytest.mark.parametrize("command", [["apply"], ["apply", "--dry-run"], ["export", "--plan"],
                                     ["export", "--dry-run", "--plan"]])  # fmt: skip
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.update(rounds=[], removed_layers=[], kept_layers=list(range(DEPTH))),
         "has no rounds"),
        (lambda p: p["recipe"].update(num_removed=5), ("num_removed is 5", "--rounds 3")),
        (lambda p: p["recipe"].update(num_removed=1), "num_removed is 1, but the rounds remove 3"),
        (lambda p: p["recipe"].update(protect_first=DEPTH), "are protected"),
        (lambda p: p["recipe"].update(protect_last=-1), "must not be negative"),
        (lambda p: p["source"].update(model_type="qwen2"), ("made for another model", "qwen2")),
        (lambda p: p.update(removed_layers=[0]), "removed_layers is [0], but the rounds say"),
        (lambda p: p.update(kept_layers=None), "kept_layers is None, but the rounds say"),
        (lambda p: p["source"].update(name="a/b\nlicense: mit", on_hub=True), "source.name is"),
        (lambda p: p["source"].update(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
        (lambda p: p["rounds"][0]["scores"].update({"1" * 30: 1.0}), "is not a number"),
    ],
)  # fmt: skip
def test_edited(refused, model, own, tmp_path, command, change, says):
    change(own)
    (tmp_path / "q.json").write_text(json.dumps(own))
    name, *option = command
    words = (says,) if isinstance(says, str) else says
    line = refused(name, model, *option, tmp_path / "q.json", "-o", tmp_path / "out", says=words)
    assert "q.json: " in line
    assert "; " in line  # and what to do


def test_a_key_that_stands_twice(apply, own):
    text = json.dumps(own)
    apply(text[:-1] + ', "rounds": []}', says="'rounds' stands twice")


def test_an_unfinished_plan_is_taken_as_far_as_it_goes(cli, model, own, tmp_path):
    own["recipe"]["num_removed"] = 5
    (tmp_path / "q.json").write_text(json.dumps(own))
    ended = cli(
        "apply", model, tmp_path / "q.json", "--rounds", 3, "-o", tmp_path / "out", "--json"
    )
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)["plan"]
    assert plan["recipe"]["num_removed"] == 3
    assert all("pruned" not in values for values in plan["perplexity"].values())


# --- a tokenizer that changed


@pytest.mark.parametrize("command", [["apply"], ["apply", "--dry-run"], ["export", "--plan"]])
def test_another_tokenizer_is_told(cli, model, plan_file, tmp_path, command):
    """The weights do not depend on it, so it is no error."""
    name, *option = command
    with (model / "tokenizer.json").open("a") as file:
        file.write("\n")
    arguments = [name, model, *option, plan_file, "-o", tmp_path / "out"]
    ended = cli(*arguments, "--json")
    assert ended.code == 0
    notes = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert str(model / "tokenizer.json") in notes[0]
    assert "the weights do not depend on it" in notes[0]
    document = json.loads(ended.out)
    assert document.get("written", document)["warnings"] == [notes[0].removeprefix("note: ")]


def test_a_plan_from_before_tokenizers_were_kept(cli, model, own, tmp_path):
    del own["source"]["tokenizer_sha256"]
    (tmp_path / "q.json").write_text(json.dumps(own))
    (model / "tokenizer.json").unlink()
    ended = cli("apply", model, tmp_path / "q.json", "-o", tmp_path / "out", "--json", "-q")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["written"]["warnings"] == []
