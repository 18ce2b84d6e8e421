"""The tokenizer of a GGUF file, as transformers makes it, with the special tokens that it asks for.

transformers does not read whether a text begins with a BOS or ends with an EOS. llama.cpp does:
``tokenizer.ggml.add_bos_token`` and ``add_eos_token`` say it, and where they are missing the kind
of the vocabulary does (``llama_vocab::impl::load``, https://github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecomp.errors import UnsupportedModelError
from prunecomp.gguf.header import GgufHeader

#: Byte-level vocabularies that begin with a BOS unless the file denies it.
_BOS_BY_DEFAULT = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "tekken", "chameleon",
}  # fmt: skip

#: Words, runs of spaces, numbers, signs and other scripts, where tokenizers differ.
_PROBE = "Hello the  world, it's 12345.67!\n\n\tdef f(x):\n    return x  # Größe, 你好, 🙂 HTTPS"


def special_tokens(metadata: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text gets a BOS in front, and an EOS at its end."""
    kind = metadata.get("tokenizer.ggml.model")
    bos = kind == "llama" or (
        kind == "gpt2" and metadata.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT
    )
    return (
        metadata.get("tokenizer.ggml.add_bos_token", bos),
        metadata.get("tokenizer.ggml.add_eos_token", kind == "t5"),
    )


def tokenizer_of(header: GgufHeader) -> Any:
    """The tokenizer that transformers makes of the file, adding what `special_tokens` says."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        # by itself: beside a tokenizer.json, transformers would read that and not the file
        (Path(directory) / "model.gguf").symlink_to(header.path.resolve())
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file="model.gguf")
    tokenizer.add_bos_token, tokenizer.add_eos_token = special_tokens(header.metadata)
    return tokenizer


def save_tokenizer(tokenizer: Any, header: GgufHeader, target: Path) -> None:
    """Writes it, beside a config.json, so that it is read as what it is.

    A class of its own, such as GemmaTokenizer, would take the vocabulary from tokenizer.json and
    cut texts in its own way, not in that of the file.

    Raises:
        UnsupportedModelError: transformers has that class for the type of model all the same.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"], config["add_eos_token"] = (
        tokenizer.add_bos_token,
        tokenizer.add_eos_token,
    )
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    again = AutoTokenizer.from_pretrained(target)
    if again(_PROBE)["input_ids"] != tokenizer(_PROBE)["input_ids"]:
        raise UnsupportedModelError(
            f"{header.path}: its tokenizer is not the one that {header.architecture} models have "
            f"in transformers ({type(again).__name__}), which would read it wrongly; take another "
            "file of the model"
        )


def front_matter(metadata: Mapping[str, Any]) -> str:
    """What the file says of licence and origin, as the front matter of a model card."""
    said = {
        "license": metadata.get("general.license"),
        "license_name": metadata.get("general.license.name"),
        "license_link": metadata.get("general.license.link"),
        "base_model": _repository(metadata),
    }
    lines = [f"{k}: {v}" for k, v in said.items() if isinstance(v, str) and _plain(v)]
    return "\n".join(["---", *lines, "---", ""]) if lines else ""


def _repository(metadata: Mapping[str, Any]) -> str | None:
    """The hub repository of the model that the file was made of."""
    for key in ("general.source.huggingface.repository", "general.source.repo_url"):
        address = str(metadata.get(key, "")).removeprefix("https://huggingface.co/").strip("/")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", address):
            return address
    return None


def _plain(text: str) -> bool:
    return bool(re.fullmatch(r"[\w./:@+ -]{1,200}", text))
