"""Tokenizers that put different things in front of a text and behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + m.role + ' is not known') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
_SPECIAL = ("<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<lang>")
IDS = {token: 256 + i for i, token in enumerate(_SPECIAL)}
VOCABULARY = 256 + len(_SPECIAL)


def write(
    directory: Path,
    *,
    front: Sequence[str] = (),
    behind: Sequence[str] = (),
    chat_template: str | None = None,
    **config,
) -> Path:
    """One token per byte, between those `front` and `behind`, as a template of the tokenizer.

    `config` is of tokenizer_config.json, where each special token but the last has its usual name.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    if front or behind:
        used = sorted({*front, *behind})
        tokenizer.post_processor = TemplateProcessing(
            single=[*front, "$A", *behind], special_tokens=[(t, IDS[t]) for t in used]
        )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    known = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", **config,
    }  # fmt: skip
    if chat_template is not None:
        known["chat_template"] = chat_template
    known = {key: value for key, value in known.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(known))
    return directory
