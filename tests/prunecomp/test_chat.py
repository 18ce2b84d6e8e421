"""Conversations: through the model's own template, in windows of whole turns."""

from __future__ import annotations

import json

import pytest
import torch

from prunecomp.calibration.data import TextSource, load_tokens, save_tokens
from prunecomp.errors import UsageError
from tests.prunecomp import made_tokenizers
from tests.prunecomp.made_tokenizers import CHAT_TEMPLATE, IDS, VOCABULARY

BOS, PAD, BEGIN, END = (IDS[t] for t in ("<bos>", "<pad>", "<|im_start|>", "<|im_end|>"))
MADE = {"front": ["<bos>"], "chat_template": CHAT_TEMPLATE}


def conversation(number: int, turns: int = 2, length: int = 10) -> list[dict]:
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": f"{number:03d}.{i} " + "x" * length} for i in range(turns)
    ]


SHAPES = {
    "messages": lambda c: {"messages": c, "other": 3},
    "conversations": lambda c: {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
            for m in c
        ]
    },
    "parts": lambda c: {
        "messages": [
            {**m, "content": [{"type": "text", "text": m["content"]}]} for m in c
        ]
    },
    "beside a text": lambda c: {"text": "no", "messages": c},
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """``load(records, made=..., field..., **load_tokens options)`` from a ``.jsonl``."""

    def run(records, made=MADE, *, name="c.jsonl", **options):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
        source = {k: options.pop(k) for k in ("field", "chat_field") if k in options}
        return load_tokens(
            TextSource(str(tmp_path / name), **source),
            tokenizer_dir=made_tokenizers.write(tmp_path / "model", **made),
            **{"samples": 4, "seq_len": 128, "vocab_size": VOCABULARY, **options},
        )

    return run


@pytest.fixture
def expected(tmp_path):
    """``expected(messages)``: what transformers makes of them."""

    def get(messages):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)

    return get


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_of_the_template(shape, load, expected):
    messages = conversation(7, turns=3)
    tokens = load([SHAPES[shape](messages)])
    assert tokens.chat == ("conversations" if shape == "conversations" else "messages")
    ids = expected(messages)
    assert ids[0] == BOS  # the template's own, which is not there twice
    assert tokens.input_ids.tolist() == [ids + [PAD] * (128 - len(ids))]
    assert tokens.counted.tolist() == [
        [False] + [True] * (len(ids) - 1) + [False] * (128 - len(ids))
    ]


def test_windows_hold_whole_turns(load, tmp_path):
    records = [{"messages": conversation(i, turns=1 + i % 5, length=i % 17)} for i in range(60)]
    tokens = load(records, samples=9)
    assert tokens.input_ids.shape == (9, 128)
    seen = []
    for ids, counted in zip(tokens.input_ids, tokens.counted, strict=True):
        assert ids[0] == BOS
        assert not counted[0]
        assert ids[1] == BEGIN
        read = int(counted.nonzero().max()) + 1
        assert (ids[read:] == PAD).all()
        text = ids[:read].tolist()
        assert text.count(BEGIN) == text.count(END)
        assert text[-2] == END  # a line break follows
        assert [i for i in range(read) if not counted[i]] == [
            i for i in range(read) if text[i] == BOS
        ]
        seen.append(text)
    assert len({tuple(t) for t in seen}) == 9
    assert sum(map(len, seen)) > 0.85 * 9 * 128
    assert any("padding" in note for note in tokens.notes)
    save_tokens(tokens, tmp_path / "t.safetensors")
    again = load_tokens(
        TextSource(str(tmp_path / "t.safetensors")), tokenizer_dir=tmp_path, vocab_size=VOCABULARY
    )
    assert again.sha256 == tokens.sha256
    assert torch.equal(again.counted, tokens.counted)
    assert again.chat == "messages"


def test_the_seed_decides(load):
    records = [{"messages": conversation(i)} for i in range(60)]
    one, again, other = (load(records, seed=seed) for seed in (1, 1, 2))
    assert one.sha256 == again.sha256 != other.sha256


def test_a_long_conversation_ends_with_the_last_turn_that_fits(load, expected):
    messages = conversation(1, turns=9)
    tokens = load([{"messages": messages}])
    length = int(tokens.counted.sum()) + 1
    fitting = [n for n in range(1, 10) if len(expected(messages[:n])) <= 128]
    assert length == len(expected(messages[: max(fitting)]))
    assert max(fitting) < 9


def test_a_turn_that_fits_nowhere_is_left_out(load):
    records = [{"messages": conversation(i, length=500 if i % 2 else 9)} for i in range(8)]
    tokens = load(records)
    assert any(note.startswith("4 conversations were left out") for note in tokens.notes)
    with pytest.raises(UsageError, match="no first turn fits into a window of 128 tokens"):
        load(records[1::2])


def test_a_conversation_that_the_template_refuses_is_left_out(load):
    bad = [{"role": "judge", "content": "x"}]
    tokens = load([{"messages": conversation(1)}, {"messages": bad}])
    assert any(
        "1 conversations were left out: the chat template refuses" in n for n in tokens.notes
    )
    with pytest.raises(UsageError, match=r"refuses all conversations \(role judge is not known\)"):
        load([{"messages": bad}])


def test_a_template_that_rewrites_earlier_turns(load, expected):
    """The whole conversation is one turn then, as it cannot end before."""
    made = {
        "chat_template": "{{ messages | length }}:" + CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    }
    tokens = load([{"messages": conversation(1)}], made)
    assert tokens.input_ids[0, : int(tokens.counted.sum())].tolist() == expected(conversation(1))
    with pytest.raises(UsageError, match="no first turn fits"):
        load([{"messages": conversation(1, turns=9)}], made)


def test_a_date_in_the_template_does_not_change_tokens_overnight(load):
    made = {"chat_template": "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE}
    tokens = load([{"messages": conversation(1)}], made)
    text = "".join(chr(33 + i) if i < 94 else "_" for i in tokens.input_ids[0].tolist())
    assert "26_Jul_2024" in text


def test_a_system_text_beside_the_messages(load, expected):
    tokens = load([{"system": "be brief", "messages": conversation(1)}])
    ids = expected([{"role": "system", "content": "be brief"}, *conversation(1)])
    assert tokens.input_ids[0, : len(ids)].tolist() == ids


def test_fields(load):
    record = {"dialogue": conversation(1), "messages": conversation(2), "text": "some text " * 99}
    found = [
        load([record], **options)
        for options in (
            {},
            {"chat_field": "dialogue"},
            {"field": "dialogue"},
            {"chat_field": "none"},
        )
    ]
    assert [f.chat for f in found] == ["messages", "dialogue", "dialogue", None]
    assert found[1].sha256 == found[2].sha256 != found[0].sha256
    assert load([{"body": "some text " * 99}], field="body").chat is None


def test_bos(load):
    record = {"messages": conversation(1)}
    auto, none, each = (load([record], bos=mode) for mode in ("auto", "none", "each"))
    assert auto.sha256 == each.sha256
    assert none.input_ids.tolist() == auto.input_ids.tolist()  # the template itself writes it
    assert none.counted[0, 0]
    template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    put = load([record], {"front": ["<bos>"], "chat_template": template})
    assert put.input_ids.tolist() == auto.input_ids.tolist()


@pytest.mark.parametrize(
    ("record", "options", "says"),
    [
        (
            {"prompt": "a", "response": "b"},
            {},
            r"line 1: has the fields prompt, response, and no text",
        ),
        ({"turns": ["a", "b"]}, {"chat_field": "turns"}, "no list of messages under 'turns'"),
        ({"messages": []}, {"chat_field": "messages"}, "no list of messages under 'messages'"),
        ({"messages": [{"role": "user", "content": 3}]}, {}, r"line 1: a message has no text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, {}, "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "a message has no text"),
    ],
)
def test_what_is_no_conversation(record, options, says, load):
    with pytest.raises(UsageError, match=says):
        load([record], **options)


def test_lines_of_another_kind(load):
    with pytest.raises(UsageError, match="line 2: has the fields text, and no list of messages"):
        load([{"messages": conversation(1)}, {"text": "a"}])


def test_a_tokenizer_without_a_template(load):
    with pytest.raises(UsageError, match=r"has no chat template; add its chat_template\.jinja"):
        load([{"messages": conversation(1)}], {})


def test_a_template_that_writes_nothing(load):
    with pytest.raises(UsageError, match="the calibration text is empty"):
        load([{"messages": conversation(1)}], {"chat_template": "{{ '' }}"})
