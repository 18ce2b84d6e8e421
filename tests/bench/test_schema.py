"""``report.json``: there and back, and what is said of files that are none."""

import json

import pytest

from bench import qualities, schema
from bench.conditions import Environment, Git, Mix, Settings, Slo
from bench.quantities import Estimate, Ratio, Spread
from prunecomp.errors import UsageError

SETTINGS = Settings(
    seed=0, repeats=3, warmup=1, mixes=(Mix("balanced", 128, 128, 32),),
    concurrency=(1, 4), request_rates=(0.5,), slo=Slo(ttft_ms=2000.0),
    engines=("vllm",), engine_args=("--dtype", "float32"), tensor_parallel_size=1,
    pipeline_parallel_size=1,
)  # fmt: skip
ENVIRONMENT = Environment(
    device="cpu", gpu=None, gpu_count=0, cpu="a cpu", cores=2, memory_bytes=8, driver=None,
    cuda=None, python="3.11.7", platform="Linux", versions={"torch": "2"},
    git=Git(None, None),
)  # fmt: skip
SPREAD = Spread(1.5, 1.0, 2.0, (1.0, None, 2.0))
REPORT = schema.Report(
    created="2026-11-22T10:00:00Z", command=("cli.py", "bench"), duration_s=1.0,
    settings=SETTINGS, environment=ENVIRONMENT,
    models=(schema.Model("base", "m", "base", "llama", 4, 0, (), 10, 20),
            schema.Model("minus-1", "p", "pruned", "llama", 3, 1, (2,), 8, 16, {"rounds": []})),
    offline=(schema.Offline("base", "vllm", "latency", None, 1, 8, 8, SPREAD, SPREAD, SPREAD),),
    accuracy=qualities.Accuracy(
        "hf", None, perplexity=(qualities.Perplexity("base", "text", 17.5, 9),)
    ),
    summary=(schema.Summary("minus-1", 1, {"decode": Ratio(1.2, 1.1, 1.3, 3)},
                            Estimate(0.9, None), 0.8, None),),
)  # fmt: skip


SERVING = {"model": "base", "mix": "balanced", "mode": "closed", "concurrency": 4,
           "request_rate": None, "completed": 0, "failed": 0, "metrics": None}  # fmt: skip


def test_there_and_back(tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT.to_json()))
    assert schema.read_report(file) == REPORT
    assert schema.read_report(tmp_path) == REPORT
    assert json.loads(file.read_text())["schema_version"] == schema.SCHEMA_VERSION


def test_what_json_cannot_say_is_not_written():
    bad = schema.Report(**{**vars(REPORT), "duration_s": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        bad.to_json()


def changed(edit):
    document = REPORT.to_json()
    edit(document)
    return document


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(schema_version=2), "r.json: has schema version 2, this program reads"),
        (lambda d: d.update(kind="else"), "r.json: is not a report"),
        (lambda d: d.pop("settings"), "r.json: the key 'settings' is missing"),
        (lambda d: d["models"][1].pop("removed"), r"r.json.models\[1\]: the key 'removed'"),
        (lambda d: d["models"][0].update(more=1), r"r.json.models\[0\]: unknown key 'more'"),
        (lambda d: d["settings"].update(seed="0"), "r.json.settings.seed: '0' is not what"),
        (lambda d: d["settings"].update(seed=True), "r.json.settings.seed: True is not"),
        (lambda d: d.update(models={}), "r.json.models: {} is not"),
        (lambda d: d["environment"].update(git=[]), "r.json.environment.git: must be"),
        (lambda d: d["summary"][0]["speedup"]["decode"].update(value=None),
         r"r.json.summary\[0\].speedup.decode.value: None is not"),
        (lambda d: d.update(duration_s=10**400), "r.json.duration_s: 1000.*000 is not"),
        (lambda d: d.update(serving=[SERVING | {"mix": "x"}]), "serving tells of the mix 'x'"),
        (lambda d: d.update(serving=[SERVING | {"mode": "x"}]), "of the mode 'x' says nothing"),
        (lambda d: d.update(serving=[SERVING | {"concurrency": None}]), "says nothing of its load"),
        (lambda d: d["summary"][0].update(model="x"), "r.json: summary tells of 'x'"),
        (lambda d: d.update(duration_s=float("inf")), "r.json.duration_s: inf is not"),
    ],
)  # fmt: skip
def test_damage_is_told_in_one_line(edit, says):
    with pytest.raises(UsageError, match=says) as error:
        schema.from_json(changed(edit), name="r.json")
    assert "\n" not in str(error.value)


def test_files_that_are_no_reports(tmp_path):
    with pytest.raises(UsageError, match=r"report.json: cannot read it \(No such file"):
        schema.read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read it as JSON"):
        schema.read_report(tmp_path)
    (tmp_path / "report.json").write_text("[" * 5000 + "]" * 5000)
    with pytest.raises(UsageError, match="nested"):
        schema.read_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UsageError, match="is not a report"):
        schema.read_report(tmp_path)
