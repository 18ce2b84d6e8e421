"""Names that hold anything: none reaches a terminal, a card's front matter or a line as it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from prunecomp.console import ERROR, shortened
from prunecomp.errors import printable
from prunecomp.limits import MAX_LINE

ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e\u2028\x00\r\n\x7f"


def front_matter(directory: Path) -> dict:
    text = (directory / "README.md").read_text()
    start, matter, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter)


# --- lines


def test_printable():
    assert printable("plain, é, 日本, 😀") == "plain, é, 日本, 😀"
    assert printable("a\tb") == "a b"
    shown = printable(ESCAPES)
    assert shown.isprintable()
    assert shown == r"\x1b]0;owned\x07\x9b2J\u202e\u2028\x00\r\n\x7f"
    assert printable("\ud800") == r"\ud800"


@pytest.mark.parametrize(
    "message",
    [
        "/a/b.json: too long (" + "x" * 1000 + "); restore the file",
        "/a/b.json: too long (" + "x y " * 1000 + "); restore the file",
        "/" + "folder/" * 100 + "b.json: is odd; restore the file",
        "b.json: " + "word " * 100 + "; " + "do this, " * 100,
        "b.json: \x1b[31m" + "\x00" * 500 + "; restore the file",
        "x" * 5000,
        "; ".join(["a b"] * 500),
    ],
)
def test_a_line_keeps_its_ends(message):
    """The file, and what to do about it."""
    line = shortened(message)
    assert len(ERROR + line) <= MAX_LINE
    assert line.isprintable()
    if message.startswith(("/", "b.json")):
        assert "b.json: " in line
        assert line.endswith("; restore the file") or re.search("; do this, .* [.]{3}$", line)


def test_short_lines_stay_as_they_are():
    for line in ("a.json: x; do y", "a  b", "x" * (MAX_LINE - len(ERROR))):
        assert shortened(line) == line


def test_a_plan_full_of_escapes(cli, refused, model, planned, tmp_path):
    """In an error, in what is printed of a plan, and in the notes beside it."""
    planned = json.loads(json.dumps(planned))
    planned["source"].update(name=ESCAPES)
    planned["perplexity"] = {f"text {ESCAPES}": {"base": 2.0, "pruned": 3.0}}
    path = tmp_path / "q.json"
    path.write_text(json.dumps(planned))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    for options in ([], ["--dry-run"], ["--dry-run", "--json"]):
        ended = cli("apply", model, path, "-o", tmp_path / f"out{len(options)}", *options)
        assert ended.code == 0
        for line in (ended.out + ended.err).split("\n"):
            assert line.isprintable()
    planned["source"]["sha256"] = {}
    path.write_text(json.dumps(planned))
    line = refused("apply", model, path, "-q", "-o", tmp_path / "new", says=(r"\x1b]0;owned\x07",))
    assert line.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": ESCAPES}, {"model_type": "x" * 100_000}, {"architectures": [ESCAPES * 50]},
        {"num_hidden_layers": "x" * 3_000_000}, {"num_hidden_layers": ESCAPES},
        {"layer_types": [ESCAPES]}, {"quantization_config": {"quant_method": ESCAPES * 100}},
    ],
    ids=range(7),
)  # fmt: skip
def test_a_config_full_of_them(refused_compress, edit_config, change):
    line = refused_compress(edit_config(**change)).rstrip("\n")
    assert line.isprintable()
    assert len(line) <= MAX_LINE


def test_names_of_tensors(refused_compress, model):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    for name in (f"model.layers.0.{ESCAPES}.weight", "model.layers." + "9" * 5000 + ".x"):
        odd = {**tensors, name: tensors["model.norm.weight"].int().clone()}
        save_file(odd, model / "model.safetensors", metadata={"format": "pt"})
        if name.startswith("model.layers.0"):
            line = refused_compress(model).rstrip("\n")
            assert line.isprintable()
            assert len(line) <= MAX_LINE


# --- cards and manifests


def test_base_model_is_a_repository(refused, model, tmp_path):
    for name in ("a/b\nlicense: mit\ngated: false", "a", "a/b/c", "a b/c", "", "é/x"):
        refused("export", model, "-o", tmp_path / "out", "--base-model", name,
                says=("--base-model", "OWNER/NAME"))  # fmt: skip


CARDS = [
    ("base_model: [unclosed\n", None),
    ("base_model: 'a/b'\nlicense: llama3.1\n", {"base_model": "a/b", "license": "llama3.1"}),
    ("base_model:\n- a/b\n- c/d\nlicense: [mit, other]\n",
     {"base_model": ["a/b", "c/d"], "license": ["mit", "other"]}),
    ("base_model: \"a/b\\nlicense: mit\"\nlicense: \"x\\n---\\n# gone\"\n", None),
    ("base_model: [3, {a: b}, 'c/d']\nlicense: {a: b}\n", {"base_model": ["c/d"]}),
    ("license: &a [x, x]\nlicense_name: [*a, *a]\n", {"license": ["x", "x"]}),
    ("license_link: https://example.org/a?b=c#d\nlicense: yes\n",
     {"license_link": "https://example.org/a?b=c#d"}),
    ("license: " + "x" * 100_000 + "\n", None),
    ("license: " + "[" * 5000 + "\n", None),
    ("- a\n", None), ("\x00\n", None), ("license: 2001-99-99\n", None),
]  # fmt: skip


@pytest.mark.parametrize(("matter", "carried"), CARDS, ids=range(len(CARDS)))
def test_front_matter_of_the_source(matter, carried, tmp_path):
    from prunecomp.card import origin_of, plain_card

    (tmp_path / "README.md").write_text(f"---\n{matter}---\n# x\n")
    card = plain_card("x", "llama", origin=origin_of(tmp_path, None), kind="k", library="l")
    (tmp_path / "README.md").write_text(card)
    found = front_matter(tmp_path)
    own = {"library_name": "l", "pipeline_tag": "text-generation", "tags": ["prunecomp"]}
    assert found == {**(carried or {}), **own}


def test_a_name_cannot_become_markup(cli, model, planned, tmp_path):
    name = "x`</code>\n---\nlicense: mit\n---\n# [a](b) | c"
    planned = json.loads(json.dumps(planned))
    planned["source"]["name"] = planned["recipe"]["metric"] = name
    planned["calibration"]["source"] = name
    (tmp_path / "q.json").write_text(json.dumps(planned))
    ended = cli("apply", model, tmp_path / "q.json", "-q", "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "license" not in front_matter(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count("\n---\n") == 1
    assert r"\n---\nlicense" in text
    assert "[a](b)" not in text.replace("`", "").split("This is")[0]


def test_nobody_learns_where_it_was_made(cli, model, text, tmp_path):
    """Neither from the card nor from the manifest; a plan, which stays here, may say it."""
    options = ["--layers", "2", "--calibration", text, "--samples", "4", "--seq-len", "32", "-q"]
    assert cli("plan", model, *options, "-o", tmp_path / "plan.json").code == 0
    assert cli("apply", model, tmp_path / "plan.json", "-q", "-o", tmp_path / "a").code == 0
    assert (
        cli("export", model, "--plan", tmp_path / "plan.json", "-q", "-o", tmp_path / "b").code == 0
    )
    assert cli("compress", model, *options, "-o", tmp_path / "c").code == 0
    assert cli("plan", tmp_path / "a", *options, "-o", tmp_path / "again.json").code == 0
    assert cli("export", tmp_path / "a", "--plan", tmp_path / "again.json", "-q", "-o",
               tmp_path / "d").code == 0  # fmt: skip
    for name in "abcd":
        for file in ("README.md", "prunecomp.json"):
            said = (tmp_path / name / file).read_text()
            assert str(tmp_path) not in said
            assert str(text.parent) not in said
    manifest = json.loads((tmp_path / "a" / "prunecomp.json").read_text())
    assert manifest["plan"]["source"]["name"] == model.name
    assert manifest["plan"]["calibration"]["source"] == text.name
    assert set(manifest["plan"]["perplexity"]) == {f"calibration ({text.name})"}
    # resuming goes by digests, so the manifest serves as well as the plan
    ended = cli("plan", model, *options, "--layers", "3", "-o", tmp_path / "deeper.json",
                "--resume", tmp_path / "a" / "prunecomp.json")  # fmt: skip
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/home/me/secret/model", "model"), ("../secret/model", "model"), ("~/x/y", "y"),
        ("C:\\Users\\me\\model", "model"), ("a/b/c", "c"), ("wikitext-2", "wikitext-2"),
        ("OWNER/NAME", "OWNER/NAME"), ("client/secret.txt", "secret.txt"), ("a.jsonl", "a.jsonl"),
        ("/home/me/.cache/huggingface/hub/models--acme--tiny/snapshots/" + "0a" * 20, "acme/tiny"),
        ("hub/models--gpt2/snapshots/" + "0a" * 20 + "/", "gpt2"), ("", ""), ("/", "/"),
    ],
)  # fmt: skip
def test_public_names(name, public):
    from prunecomp.published import public_name

    assert public_name(name) == public


def test_a_snapshot_of_the_hub_is_called_by_its_repository(cli, model, small, tmp_path):
    place = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / ("01" * 20)
    place.parent.mkdir(parents=True)
    shutil.copytree(model, place)
    options = ["--layers", "1", *small, "-q"]
    assert cli("compress", place, *options, "-o", tmp_path / "a").code == 0
    assert cli("export", place, "-q", "-o", tmp_path / "b").code == 0
    for name, title in (("a", "# tiny without 1 of 6"), ("b", "# tiny\n")):
        text = (tmp_path / name / "README.md").read_text()
        assert title in text
        assert "`acme/tiny`" in text
        assert front_matter(tmp_path / name)["base_model"] == "acme/tiny"
    (place / "README.md").write_text("---\nbase_model:\n- meta-llama/Llama-3.1-8B\n---\n")
    assert cli("compress", place, *options, "-o", tmp_path / "c").code == 0
    assert front_matter(tmp_path / "c")["base_model"] == ["meta-llama/Llama-3.1-8B"]
