"""lm-eval runs on local tasks with tiny models, against transformers' own numbers."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.accuracy import tasks, worker
from bench.accuracy.collect import ONLY_SHORT, _guessed, collect
from bench.accuracy.run import Request, check, job_of, run
from bench.qualities import TaskResult
from prunecomp.calibration.data import CalibrationSet, TextSource, load_tokens
from prunecomp.errors import UsageError
from prunecomp.progress import Progress
from tests.oracles import tiny_models
from tests.prunecomp import made_tokenizers

OPTIONS = [["yes", "no", "so", "xy"], ["up", "to"], ["aa", "b1", "c"]] * 8
ITEMS = [
    {"q": f"item {i}: {'abcdefgh'[i % 8] * (i % 5 + 1)}", "options": o, "gold": i % len(o)}
    for i, o in enumerate(OPTIONS)
]
CHANCE = statistics.fmean(1 / len(item["options"]) for item in ITEMS)

TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: q
target_delimiter: " "
num_fewshot: 0
metadata: {{version: 1}}
"""
CHOICE = """
task: {name}
output_type: multiple_choice
doc_to_choice: options
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
GENERATE = """
task: local_generate
output_type: generate_until
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["z"], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
WHOLE = """
group: local_whole
task: [local_one, local_two]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 1}
"""


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory) -> Path:
    """A directory of task files; the data sets that it caches are in a directory of their own."""
    folder = tmp_path_factory.mktemp("tasks")
    parts = {"local_choice": ITEMS, "local_one": ITEMS[:15], "local_two": ITEMS[15:]}
    for name, items in parts.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
        text = CHOICE.format(name=name) + TASK.format(file=file)
        (folder / f"{name}.yaml").write_text(text)
    file = folder / "local_choice.jsonl"
    (folder / "generate.yaml").write_text(GENERATE + TASK.format(file=file))
    (folder / "whole.yaml").write_text(WHOLE)
    absent = CHOICE.format(name="local_absent") + TASK.format(file=folder / "nowhere.jsonl")
    (folder / "absent.yaml").write_text(absent)
    return folder


@pytest.fixture(scope="module")
def models(text_model, tmp_path_factory) -> dict[str, Path]:
    """A base, and a shallower model of other weights."""
    path = tmp_path_factory.mktemp("shallow") / "model"
    shallow = tiny_models.build(
        "llama-tied", seed=11, vocab_size=257, max_position_embeddings=32, num_hidden_layers=3
    )
    tiny_models.write(shallow, path)
    tiny_models.byte_tokenizer().save_pretrained(path)
    return {"base": text_model, "minus-5": path}


def request_for(local_tasks: Path, *names: str, **options) -> Request:
    return Request(**{
        "tasks": names, "include_path": (local_tasks,), "texts": (), "device": "cpu", **options,
    })  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(models, local_tasks, tmp_path_factory):
    """``evaluated(*tasks, **options)``: a directory of the worker for each model."""
    known = {}

    def evaluate(*names: str, **options) -> dict[str, Path]:
        key = (names, *options.items())
        if key not in known:
            known[key] = {}
            for name, path in models.items():
                where = known[key][name] = tmp_path_factory.mktemp(name)
                worker.evaluate(job_of(path, request_for(local_tasks, *names, **options)), where)
        return known[key]

    return evaluate


def collected(directories, base="base"):
    return collect(directories, base=base, engine="hf", num_fewshot=None)


def naive_outcomes(path: Path) -> list[float]:
    """Whether the likeliest option is the right one, with transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    outcomes = []
    for item in ITEMS:
        scores = []
        for option in item["options"]:
            ids = tokenizer(f"{item['q']} {option}", return_tensors="pt").input_ids
            start = len(tokenizer(item["q"]).input_ids)
            with torch.no_grad():
                logs = model(ids).logits.log_softmax(-1)[0, :-1]
            chosen = logs.gather(1, ids[0, 1:, None])[start - 1 :]
            scores.append(float(chosen.sum()))
        outcomes.append(float(scores.index(max(scores)) == item["gold"]))
    return outcomes


def test_choices_are_those_of_transformers(models, evaluated):
    accuracy, warnings = collected(evaluated("local_choice", "local_whole"))
    naive = {name: naive_outcomes(path) for name, path in models.items()}
    assert 0 < statistics.fmean(naive["base"]) < 1
    for row in accuracy.results:
        outcomes = naive[row.model]
        assert row.group == "selected"
        assert row.kind == "choice"
        assert row.metric == "acc"
        assert row.n == len(ITEMS)
        assert row.value == pytest.approx(statistics.fmean(outcomes))
        assert row.stderr == pytest.approx(statistics.stdev(outcomes) / math.sqrt(len(ITEMS)))
        assert row.chance == pytest.approx(CHANCE)
    # An aggregated group is one row, of all of its items.
    assert [r.task for r in accuracy.results] == ["local_choice", "local_whole"] * 2
    ratio = statistics.fmean(naive["minus-5"]) / statistics.fmean(naive["base"])
    assert [r.value for r in accuracy.retained] == pytest.approx([ratio, ratio])
    (mean,) = accuracy.mean_retained
    assert mean.value == pytest.approx(ratio)
    base = accuracy.results[0]
    guesses = base.value <= CHANCE + 2 * base.stderr
    assert warnings[0] == ONLY_SHORT
    assert [("local_choice, local_whole" in w) for w in warnings[1:]] == [True] * guesses


@pytest.mark.parametrize(
    ("value", "stderr", "chance", "warned"),
    [(0.34, 0.05, 0.25, True), (0.36, 0.05, 0.25, False), (0.1, None, 0.25, True),
     (0.3, None, 0.25, False), (0.0, 0.0, None, False)],
)  # fmt: skip
def test_a_base_that_guesses_is_told(value, stderr, chance, warned):
    """What is left of guesses looks like a small loss; of the pruned model it is no matter."""
    rows = []
    for model, shift in (("base", 0.0), ("minus-5", -0.1)):
        metrics = {"metric": "acc", "value": value + shift, "stderr": stderr, "chance": chance}
        rows.append(TaskResult(model, "cloze", "local", n=100, **metrics))
    assert bool(_guessed(rows, "base")) is warned
    assert all("cloze" in warning for warning in _guessed(rows, "base"))


def test_raw_samples_and_lm_evals_own_figures_are_kept(evaluated):
    directories = evaluated("local_choice", "local_whole")
    found = json.loads((directories["base"] / "results.json").read_text())
    accuracy, _ = collected(directories)
    own = found["results"]["local_choice"]
    assert accuracy.results[0].value == pytest.approx(own["acc,none"])
    assert accuracy.results[0].stderr == pytest.approx(own["acc_stderr,none"])
    samples = (directories["base"] / "samples" / "local_choice.jsonl").read_text().splitlines()
    assert len(samples) == len(ITEMS)
    assert {"doc", "arguments", "resps", "acc"} <= json.loads(samples[0]).keys()


def test_a_task_that_generates_silences_the_guard(models, evaluated, monkeypatch):
    accuracy, warnings = collected(evaluated("local_generate", limit=3))
    assert {row.kind for row in accuracy.results} == {"generation"}
    assert {row.n for row in accuracy.results} == {3}
    assert ONLY_SHORT not in warnings
    assert all(row.value == 0 for row in accuracy.results)  # the base has nothing to retain
    assert accuracy.retained == ()
    assert any("local_generate" in warning for warning in warnings)


def test_without_the_base_nothing_is_compared(evaluated):
    directories = evaluated("local_choice", "local_whole")
    accuracy, _ = collected({"minus-5": directories["minus-5"]})
    assert accuracy.results
    assert accuracy.retained == accuracy.mean_retained == ()


def test_perplexity_is_transformers_own_loss(models, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of {i * 7919 % 97} words\n" for i in range(60)))
    other = tmp_path / "other.txt"
    other.write_text("no line is like another: " + " ".join(str(i**3) for i in range(90)))
    request = Request(
        tasks=(), texts=(str(text), str(other)), text_samples=7, text_seq_len=24, device="cpu",
        batch_size=3,
    )  # fmt: skip
    worker.evaluate(job_of(models["base"], request), tmp_path)
    found, second = json.loads((tmp_path / "perplexity.json").read_text())
    assert second["text"] == str(other)
    assert second["perplexity"] != found["perplexity"]
    ids = load_tokens(
        TextSource(str(text)), tokenizer_dir=models["base"], vocab_size=257, samples=7, seq_len=24
    ).input_ids
    model = AutoModelForCausalLM.from_pretrained(models["base"], dtype=torch.float32)
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert found["tokens"] == 7 * 23
    row, _ = collected({"base": tmp_path})[0].perplexity
    assert (row.model, row.text, row.tokens) == ("base", str(text), 7 * 23)


@pytest.mark.parametrize("made", ["none", "bos", "eos", "both"])
def test_texts_begin_as_the_tokenizer_begins_them(made, models, tmp_path):
    """And nothing stands between a context and its answer, whatever is put behind a text."""
    directory = shutil.copytree(models["base"], tmp_path / "model")
    front = ["<bos>"] if made in {"bos", "both"} else []
    made_tokenizers.write(
        directory, front=front, behind=["<eos>"] if made in {"eos", "both"} else []
    )
    lm = worker.load_model(job_of(directory, Request(tasks=(), texts=(), device="cpu")))
    assert worker.begin_texts(lm.tokenizer) == front
    context, answer = lm._encode_pair("one two", " three")
    prefix = [made_tokenizers.IDS["<bos>"]] if front else []
    whole = lm.tokenizer("one two three", add_special_tokens=False)["input_ids"]
    assert context == prefix + whole[: len("one two")]
    assert context + answer == prefix + whole


def test_perplexity_begins_with_the_prefix_and_leaves_it_out(tmp_path):
    """The tokens, and the mean over them, that `plan` evaluates on."""
    model = tiny_models.build("llama-tied", vocab_size=made_tokenizers.VOCABULARY)
    tiny_models.write(model, tmp_path / "model")
    made_tokenizers.write(tmp_path / "model", front=["<lang>", "<bos>"], behind=["<eos>"])
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of {i * 7919 % 97} words\n" for i in range(60)))
    request = Request(tasks=(), texts=(str(text),), text_samples=5, text_seq_len=24, device="cpu")
    worker.evaluate(job_of(tmp_path / "model", request), tmp_path)
    (found,) = json.loads((tmp_path / "perplexity.json").read_text())
    tokens = load_tokens(
        TextSource(str(text)), tokenizer_dir=tmp_path / "model",
        vocab_size=made_tokenizers.VOCABULARY, samples=5, seq_len=24,
    )  # fmt: skip
    labels = tokens.input_ids.clone()
    assert labels[:, :2].tolist() == [[made_tokenizers.IDS[t] for t in ("<lang>", "<bos>")]] * 5
    labels[:, :2] = -100
    with torch.no_grad():
        loss = model(input_ids=tokens.input_ids, labels=labels).loss
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert (found["tokens"], found["prefix"]) == (5 * 22, list(tokens.prefix))
    accuracy, _ = collected({"base": tmp_path})
    assert accuracy.prefix == ("<lang>", "<bos>")


def test_windows_of_which_some_tokens_do_not_count():
    ids = torch.arange(10, 18)[None]
    mask = torch.tensor([[False, True, True, False, True, True, False, False]])
    tokens = CalibrationSet(ids, TextSource("t"), 0, "auto", (), mask)
    assert worker.windows_of(tokens) == [
        (("", ""), [10], [11, 12]), (("", ""), [10, 11, 12, 13], [14, 15]),
    ]  # fmt: skip


def test_data_that_cannot_be_had_is_one_line(models, local_tasks, tmp_path, capfd):
    job = job_of(models["base"], request_for(local_tasks, "local_absent"))
    (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
    assert worker.main([str(tmp_path / "job.json"), str(tmp_path)]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "local_absent" in said[0]
    assert "HF_DATASETS_OFFLINE" in said[0]
    assert not (tmp_path / "results.json").exists()


def test_unknown_tasks_are_refused_with_a_suggestion(local_tasks, monkeypatch):
    """lm-eval's own list is read once; it knows all tasks of our sets."""
    manager = tasks._manager((local_tasks,), defaults=True)
    monkeypatch.setattr(tasks, "_manager", lambda paths, *, defaults: manager)
    for names in tasks.SETS.values():
        assert set(names) <= set(manager.all_tasks)
    with pytest.raises(UsageError, match="unknown task 'helaswag'; did you mean 'hellaswag'"):
        check(request_for(local_tasks, "quick", "helaswag"))
    check(request_for(local_tasks, "paper-qa", "mmlu", "quick", "quick-gen", "local_choice"))


@pytest.mark.parametrize(("options", "message"), [
    ({"engine": "onnx"}, "unknown accuracy engine 'onnx'"),
    ({"limit": 0}, "--limit 0"),
    ({"include_path": (Path("nowhere"),)}, "--include-path nowhere"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(local_tasks, options, message):
    with pytest.raises(UsageError, match=message):
        check(request_for(local_tasks, "quick", **options))


def test_one_model_that_fails_does_not_lose_the_others(models, local_tasks, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(models["base"], broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    request = request_for(local_tasks, "local_choice", limit=4)
    given = {"base": models["base"], "broken": broken}
    outcome = run(given, request, output=tmp_path / "raw", progress=Progress(quiet=True))
    assert {row.model for row in outcome.accuracy.results} == {"base"}
    (failure,) = outcome.failures
    assert failure.model == "broken"
    assert failure.stage == "accuracy"
    assert "\n" not in failure.message
    assert len(outcome.commands) == 2
    del given["broken"]
    again = run(given, request, output=tmp_path / "raw", progress=Progress(quiet=True))
    assert again.commands == ()  # nothing is done twice
    assert again.accuracy == outcome.accuracy
