"""What the models are asked, what they say, and what happens where one says nothing."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import cli
from bench import questions
from bench.conditions import Message
from bench.context import Tools
from bench.engine_worker import Program
from bench.schema import read_report
from prunecomp.commands import bench as command
from prunecomp.errors import UsageError
from tests.bench.fake_engine import World, said
from tests.oracles import tiny_models

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LAYERS = {"base": 8, "minus-2": 6}


def write(path, depth=8, template=None, context=256):
    model = tiny_models.build(
        "llama-tied", vocab_size=257, max_position_embeddings=context, num_hidden_layers=depth
    )
    tiny_models.write(model, path)
    tokenizer = tiny_models.byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name, depth, TEMPLATE) for name, depth in LAYERS.items()}


@pytest.fixture
def bench(models, tmp_path, monkeypatch, capsys):
    """``bench(world, *options)``: the command's code and stderr."""
    original = command._request
    monkeypatch.setattr("bench.report.html.render", lambda report: "")

    def run(world, *options):
        def request(args):
            return dataclasses.replace(original(args), tools=Tools(world.server, world.worker))

        monkeypatch.setattr(command, "_request", request)
        code = cli.main([
            "bench", *map(str, models.values()), "-o", str(tmp_path / "out"), "-q", "--mix",
            "even=8:5x6", "--concurrency", "1,2", "--repeats", "1", "--request-rates", "none",
            *options,
        ])  # fmt: skip
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    lines = [{"prompt": "One\u2028two"}, {"messages": [*turns, turns[0]]}, {"messages": turns}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_of_a_file(prompts, tmp_path):
    one, two, three = questions.read_prompts(prompts)
    assert one == (Message("user", "One\u2028two"),)
    assert [m.role for m in two] == ["user", "assistant", "user"]
    assert three == (Message("user", "Hi"),), "the reply is what is asked for"
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufefffirst\r\n\n  second  \n", encoding="utf-8")
    assert [p[0].content for p in questions.read_prompts(lines)] == ["first", "  second  "]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.json", "{}", "p.json: give a .txt, a .jsonl, or none"),
        ("p.txt", "\n \n", "p.txt: has no prompt in it"),
        ("p.txt", b"\xff\xfe", "p.txt: is not UTF-8 text; name a readable file"),
        ("p.jsonl", "{", "p.jsonl, line 1: is not JSON"),
        ("p.jsonl", '\n{"text": "a"}', 'p.jsonl, line 2: give {"prompt": text} or {"messages"'),
        ("p.jsonl", '{"prompt": " "}', "line 1: give"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "line 1: give"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "line 1: give"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "line 1: holds half of a surrogate pair"),
        ("absent.txt", None, "absent.txt: No such file"),
        ("p.jsonl", json.dumps({"prompt": "a" * 250}), "tokens, and the context of"),
        (
            "p.jsonl",
            '{"messages": [{"role": "tool", "content": "a"}]}',
            "refuses a prompt of --ans",
        ),
    ],
)
def test_a_file_that_cannot_be_used(bench, tmp_path, name, content, says):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    world = World()
    code, err = bench(world, "--answers", str(tmp_path / name))
    assert code == 2
    assert says in err
    assert (err.count("\n"), len(err) < 310) == (1, True)
    assert world.events == []
    assert not (tmp_path / "out").exists()


def test_no_stage_that_answers(bench, tmp_path, prompts):
    code, err = bench(World(), "--answers", str(prompts), "--skip", "serving,offline")
    assert code == 2
    assert "serving and offline are skipped, so that nothing answers" in err


def test_tokens_are_those_of_the_template(models, prompts):
    asked = questions.prepare(models["base"], str(prompts))
    assert asked.chat
    tokenizer = AutoTokenizer.from_pretrained(models["base"])
    for prompt, tokens in zip(asked.prompts, asked.tokens, strict=True):
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert list(tokens) == expected
    assert tokenizer.decode(asked.tokens[1]) == "<user>Hi<assistant>Ho<user>Hi<assistant>"
    assert asked.stop == (tokenizer.eos_token_id,)
    assert asked.context == max(map(len, asked.tokens)) + 64


def test_without_a_template_prompts_are_beginnings(tmp_path, prompts):
    plain = write(tmp_path / "plain")
    (plain / "generation_config.json").write_text('{"eos_token_id": [3, 256]}')
    asked = questions.prepare(plain, None)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert [tokenizer.decode(t) for t in asked.tokens] == list(questions.BEGINNINGS)
    assert (asked.chat, asked.stop) == (False, (256, 3))
    with pytest.raises(UsageError, match="has no chat template, and a prompt of --answers has 3"):
        questions.prepare(plain, str(prompts))
    assert questions.prepare(write(tmp_path / "short", context=64), None) is None
    (plain / "model.safetensors").unlink()
    assert questions.prepare(plain, None) is None


def answers_of(directory):
    found = read_report(directory).answers
    return {
        (q.prompt[-1].content, a.model): a for q in found.questions for a in q.answers
    }  # fmt: skip


@pytest.mark.parametrize("skip", ["accuracy", "accuracy,offline", "accuracy,serving"])
def test_every_model_answers(bench, models, tmp_path, skip):
    """Of its server, or where there is none of the engine; once, also when resumed."""
    world = World()
    code, err = bench(world, "--skip", skip)
    assert code == 0, err
    found = answers_of(tmp_path / "out")
    assert len(found) == 2 * len(questions.QUESTIONS)
    tokenizer = AutoTokenizer.from_pretrained(models["base"])
    for (prompt, name), answer in found.items():
        ids = tokenizer(f"<user>{prompt}<assistant>")["input_ids"]
        of_worker = tokenizer.decode([LAYERS[name], *ids])
        expected = (said(LAYERS[name], ids), 64, False)
        if "serving" in skip:
            expected = (of_worker, len(ids) + 2, True)
        assert (answer.text, answer.output_tokens, answer.finished) == expected
    asked = [e for e in world.events if e[0] == "ask"]
    assert len(asked) == (0 if "serving" in skip else len(found))
    for _, _, path, body in asked:
        assert path == "/v1/completions"
        assert (body["temperature"], body["repetition_penalty"], body["max_tokens"]) == (0, 1, 64)
        assert body["stop_token_ids"] == [256]
    assert len(read_report(tmp_path / "out").settings.answers) == len(questions.QUESTIONS)
    again = World()
    assert bench(again, "--skip", skip, "--resume")[0] == 0
    assert again.events == []
    assert answers_of(tmp_path / "out") == found
    code, err = bench(World(), "--skip", skip, "--resume", "--answers", "none")
    assert code == 2
    assert "was begun with another answers" in err


def test_the_longest_prompt_fits_the_servers(bench, models, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("x" * 100)
    assert bench(World(), "--skip", "accuracy,offline", "--answers", str(file))[0] == 0
    arguments = read_report(tmp_path / "out").settings.engine_args
    length = len("<user><assistant>") + 100 + 64
    assert arguments[arguments.index("--max-model-len") + 1] == str(length)


def test_none_are_asked(bench, tmp_path):
    assert bench(World(), "--skip", "accuracy,offline", "--answers", "none")[0] == 0
    report = read_report(tmp_path / "out")
    assert (report.answers, report.settings.answers) == (None, ())


def test_one_that_does_not_answer_is_told_and_measured(bench, tmp_path):
    code, err = bench(World(silent={"minus-2"}), "--skip", "accuracy,offline")
    assert code == 1
    assert "1 failure(s), the first: answers, minus-2: " in err
    assert "the answer of its server cannot be used (IndexError" in err
    assert {name for _, name in answers_of(tmp_path / "out")} == {"base"}
    report = read_report(tmp_path / "out")
    assert {s.model for s in report.serving if s.metrics} == {"base", "minus-2"}


def test_one_that_is_not_up_is_not_asked(bench, tmp_path):
    assert bench(World(refused={"base"}), "--skip", "accuracy,offline")[0] == 1
    assert {name for _, name in answers_of(tmp_path / "out")} == {"minus-2"}
    assert [f.stage for f in read_report(tmp_path / "out").failures] == ["serving"]


def test_transformers_stops_where_it_is_told_to(models):
    """Greedy tokens of the model itself; the stop is the last of them."""
    program = Program("transformers", models["base"])
    options = {"arguments": ["--dtype", "float32"], "context": 64, "batch": 1, "device": "cpu"}
    program.answer({"do": "load", "options": options})
    model = AutoModelForCausalLM.from_pretrained(models["base"], dtype=torch.float32).eval()
    ids, expected = [5, 6, 7], []
    for _ in range(12):
        logits = model(torch.tensor([ids + expected])).logits[0, -1]
        expected.append(int(logits.argmax()))
    ask = {"do": "answer", "prompt": ids, "new_tokens": 12, "stop": [300]}
    assert program.answer(ask) == {"tokens": expected}
    end = expected.index(expected[4]) + 1
    assert program.answer({**ask, "stop": [expected[4]]}) == {"tokens": expected[:end]}
