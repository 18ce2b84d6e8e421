"""Plans that are damaged or belong to another model, and the files that `plan` reads and writes."""

from __future__ import annotations

import json

import pytest

from tests.cli.support import DEPTH, tree


def test_good_plan(cli, model, own, tmp_path):
    """So that what follows fails for the reason that it states."""
    (tmp_path / "good.json").write_text(json.dumps(own))
    ended = cli("apply", model, tmp_path / "good.json", "-q", "-o", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")


# --- no plan


def test_missing(refused, model, tmp_path):
    refused("apply", model, tmp_path / "nope.json", "-o", tmp_path / "out",
            says=("nope.json: cannot read it", "No such file"))  # fmt: skip


def test_directory(refused, model, tmp_path):
    refused("apply", model, tmp_path, "-o", tmp_path / "out", says="cannot read it")


def test_model_file(refused, model, tmp_path):
    for name, says in (("config.json", "not a prunecomp plan"), ("model.safetensors", "cannot")):
        refused("apply", model, model / name, "-o", tmp_path / "out", says=says)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"x"', "{}", '{"plan": 3}', "\0", "[" * 200_000,
             '{"schema_version": ' + "1" * 5000 + "}", '{"schema_version": 1}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_no_plan(apply, text):
    apply(text, says="bad.json: ")


@pytest.mark.parametrize("version", [0, 3, "1", True, None, [], {}])
def test_version(apply, own, version):
    own["schema_version"] = version
    apply(own, says=("schema version", "reads version 1 to 2", "make the plan again"))


# --- a damaged plan

DAMAGES = [
    ("source", None), ("source", 3), ("source", []), ("source.num_hidden_layers", "6"),
    ("source.num_hidden_layers", 6.0), ("source.num_hidden_layers", None),
    ("source.num_hidden_layers", 0), ("source.num_hidden_layers", 10**7),
    ("source.sha256", []), ("source.sha256", 3), ("source.name", 3), ("source.extra", 1),
    ("recipe", None), ("recipe.fold", "sideways"), ("recipe.fold", 3), ("recipe.metric", None),
    ("recipe.compensation", 3), ("recipe.num_removed", "x"), ("recipe.options", 3),
    ("calibration", None), ("calibration.samples", "x"), ("calibration.seed", 1.5),
    ("rounds", 3), ("rounds", None), ("rounds", [[]]), ("rounds", [None]),
    ("rounds.0.removed", []), ("rounds.0.removed", [DEPTH]), ("rounds.0.removed", [-1]),
    ("rounds.0.removed", [0, 2]), ("rounds.0.removed", [1, 0]), ("rounds.0.removed", [1, 1]),
    ("rounds.0.removed", list(range(DEPTH))), ("rounds.0.removed", "1"),
    ("rounds.0.removed", ["1"]), ("rounds.0.removed", [1.7]), ("rounds.0.removed", None),
    ("rounds.0.factor", 0), ("rounds.0.factor", -1), ("rounds.0.factor", float("nan")),
    ("rounds.0.factor", float("inf")), ("rounds.0.factor", "x"), ("rounds.0.factor", None),
    ("rounds.0.scores", None), ("rounds.0.scores", {"a": 1}), ("rounds.0.scores", {"1": "a"}),
    ("perplexity", None), ("perplexity", []), ("perplexity", {"x": 3}), ("perplexity", {"x": {}}),
    ("perplexity", {"x": {"base": "a"}}), ("perplexity", {"x": {"base": None, "pruned": 1}}),
    ("versions", None), ("versions", 3),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), DAMAGES, ids=lambda v: str(v)[:30])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["apply", "dry-run"])
def test_damage(apply, own, where, value, dry):
    *path, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    place = own
    for key in path:
        place = place[key]
    place[last] = value
    apply(own, *dry, says="again")


@pytest.mark.parametrize("key", ["source", "recipe", "calibration", "rounds", "perplexity"])
def test_gap(apply, own, key):
    del own[key]
    apply(own, says=(key, "make it again"))


def test_all_layers(apply, own):
    own["rounds"] = [{"removed": [i], "factor": 1.0, "scores": {}} for i in range(DEPTH)]
    apply(own, says="at least one must stay")


# --- a plan for another model


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["apply", "dry-run"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_one_byte_differs(apply, own, model, file, dry):
    data = bytearray((model / file).read_bytes())
    data[-1] ^= 1 if file == "model.safetensors" else 0
    (model / file).write_bytes(data + (b" " if file == "config.json" else b""))
    apply(own, *dry, says=("made for another model", f"{file} differs", own["source"]["name"]))


def test_file_that_the_plan_does_not_know(apply, own):
    own["source"]["sha256"]["extra"] = "0"
    apply(own, says=("made for another model", "extra differs"))


def test_depth_differs(apply, own):
    own["source"]["num_hidden_layers"] += 1
    own["kept_layers"].append(DEPTH)
    apply(own, says=("made for another model", "the depth differs"))


# --- rounds


@pytest.mark.parametrize("rounds", ["0", "-1", "4", "9" * 30])
def test_rounds(apply, own, rounds):
    apply(own, "--rounds", rounds, says=(f"--rounds {rounds}", "3 round(s)", "from 1 to 3"))


def test_every_depth(cli, model, plan_file, tmp_path):
    for rounds in (1, 2, 3):
        out = tmp_path / f"out-{rounds}"
        ended = cli("apply", model, plan_file, "--rounds", rounds, "-q", "-o", out)
        assert (ended.code, ended.err) == (0, "")
        config = json.loads((out / "config.json").read_text())
        assert config["num_hidden_layers"] == DEPTH - rounds


def test_manifest_is_a_plan(cli, model, plan_file, tmp_path):
    assert cli("apply", model, plan_file, "-q", "-o", tmp_path / "one").code == 0
    ended = cli("apply", model, tmp_path / "one" / "prunecomp.json", "-q", "-o", tmp_path / "two")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


# --- where `plan` writes


@pytest.fixture
def refused_plan(refused, model, small):
    def check(*options, **expected) -> str:
        return refused("plan", model, "-q", "--layers", 1, *small, *options, **expected)

    return check


def test_output_that_is_there(refused_plan, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "dangling").symlink_to("nowhere")
    refused_plan("-o", tmp_path / "plan.json", says=("exists already", "--overwrite"))
    refused_plan("-o", tmp_path / "dangling", says="exists already")
    refused_plan("-o", tmp_path / "here", says="is a directory; name a file")
    refused_plan("-o", tmp_path / "here", "--overwrite", says="is a directory; name a file")
    refused_plan("-o", "/dev/full", "--overwrite", says="is not an ordinary file")
    refused_plan("-o", "/proc/plan.json", says="cannot be written")
    refused_plan("-o", tmp_path / "plan.json" / "x", says="is not a directory")


def test_overwrite(cli, model, small, tmp_path):
    (tmp_path / "plan.json").write_text("old")
    ended = cli("plan", model, "-q", "--layers", 1, *small, "-o", tmp_path / "plan.json",
                "--overwrite")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert json.loads((tmp_path / "plan.json").read_text())["removed_layers"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("plan.json", "give a file of its own"), ("tokens.pt", "named .safetensors"),
        ("plan.json/x.safetensors", "is not a directory"), ("there.safetensors", "exists already"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_saved(refused_plan, tmp_path, name, says):
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "plan.json").touch()
    refused_plan("-o", tmp_path / "plan.json", "--overwrite" if "there" not in name else "-q",
                 "--save-tokens", tmp_path / name,
                 says=says if "there" not in name else "exists already")  # fmt: skip


def test_tokens_in_the_place_of_the_plan(refused_plan, tmp_path):
    path = tmp_path / "x.safetensors"
    refused_plan("-o", path, "--save-tokens", path, says="give a file of its own")


def test_saved_tokens_repeat_the_run(cli, model, small, tmp_path):
    tokens = tmp_path / "new" / "tokens.safetensors"
    first = cli("plan", model, "-q", "--layers", 2, *small, "-o", tmp_path / "one.json",
                "--save-tokens", tokens)  # fmt: skip
    again = cli("plan", model, "-q", "--layers", 2, "--calibration", tokens, "-o",
                tmp_path / "two.json")  # fmt: skip
    assert (first.code, first.err, again.code, again.err) == (0, "", 0, "")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one["rounds"] == two["rounds"]
    assert one["calibration"]["sha256"] == two["calibration"]["sha256"]


def test_failure_saves_no_tokens(refused_plan, tmp_path, monkeypatch):
    from prunecomp import pipeline
    from prunecomp.errors import NumericError

    def fail(*args, **kwargs):
        raise NumericError("the hidden states are not finite")

    monkeypatch.setattr(pipeline, "select", fail)
    refused_plan("-o", tmp_path / "a" / "plan.json", "--save-tokens",
                 tmp_path / "b" / "tokens.safetensors", code=1, says="not finite")  # fmt: skip


# --- resuming


@pytest.mark.parametrize("content", ["", "{", "{}", "notes"])
def test_resume_from_what_is_no_plan(refused_plan, tmp_path, content):
    """It is not overwritten."""
    (tmp_path / "old.json").write_text(content)
    refused_plan("-o", tmp_path / "plan.json", "--resume", tmp_path / "old.json", says="old.json")


def test_resume_from_a_place_that_cannot_be(refused_plan, tmp_path):
    refused_plan("-o", tmp_path / "x", "--resume", tmp_path / "here", says="is a directory")
    refused_plan("-o", tmp_path / "plan.json", "--resume", "/proc/x", says="cannot be written")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "ppl"], "other options"), (["--compensation", "none"], "other options"),
        (["--samples", "3"], "other calibration tokens"), (["--seed", "1"], "other calibration"),
    ],
)  # fmt: skip
def test_resume_of_another_run(refused_plan, plan_file, tmp_path, options, says):
    refused_plan("--layers", 4, "-o", tmp_path / "new.json", "--resume", plan_file, *options,
                 says=("cannot resume", says))  # fmt: skip


def test_resume_of_another_model(refused_plan, plan_file, model, tmp_path):
    with (model / "config.json").open("a") as file:
        file.write(" ")
    refused_plan("--layers", 4, "-o", tmp_path / "new.json", "--resume", plan_file,
                 says="other model")  # fmt: skip


def test_resume_of_a_deeper_plan(refused_plan, plan_file, tmp_path):
    refused_plan("--layers", 2, "-o", tmp_path / "new.json", "--resume", plan_file,
                 says=("removes 3 layers already", "apply --rounds"))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["rounds"][0].update(scores={}), "round 1 of the plan has no score of layer"),
        (lambda p: p["rounds"][0]["scores"].popitem(), "has no score of layer"),
        (lambda p: p["rounds"][0]["scores"].update({"0": float("nan")}), "holds NaN"),
        (lambda p: p["rounds"][1].update(factor=None), "rounds[1].factor: None"),
    ],
)  # fmt: skip
def test_resume_of_a_ranking_with_gaps(cli, refused, model, small, tmp_path, change, says):
    path, command = tmp_path / "old.json", ["plan", model, "-q", *small, "--strategy", "one-shot"]
    assert cli(*command, "--layers", 2, "-o", path).code == 0
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    refused(*command, "--layers", 3, "-o", tmp_path / "new.json", "--resume", path,
            says=("old.json: ", says))  # fmt: skip


def test_one_file_for_both(cli, model, small, plan_file, tmp_path):
    """Started, stopped and continued under one name; the end is that of a run in one go."""
    both = tmp_path / "new" / "both.json"
    for layers in (1, 3):
        ended = cli("plan", model, "-q", *small, "--layers", layers, "-o", both, "--resume", both)
        assert (ended.code, ended.err) == (0, "")
    assert json.loads(both.read_text())["rounds"] == json.loads(plan_file.read_text())["rounds"]
    assert set(tree(both.parent)) == {"both.json"}
