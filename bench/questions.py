"""The prompts that every model answers for the report: as text, and as the tokens it is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.conditions import Message, Prompt
from bench.models import context_of, has_weights
from prunecomp.errors import UsageError

MAX_TOKENS = 64
#: Where no file is given: what a chat model is asked, and what any other model goes on with.
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "Tom has three apples and eats one of them. How many apples has he left?",
    "Write a Python function that reverses a string.",
)
BEGINNINGS = (
    "The capital of France is",
    "The sky is blue because",
    "Tom has three apples. He eats one of them. Now he has",
    "def reverse(text):\n",
)


@dataclass(frozen=True)
class Asked:
    """Prompts, ready for an engine.

    Attributes:
        prompts: what was asked, in words.
        tokens: of each prompt, as the model gets it.
        stop: tokens that end an answer.
        chat: whether the prompts went through a chat template.
    """

    prompts: tuple[Prompt, ...]
    tokens: tuple[tuple[int, ...], ...]
    stop: tuple[int, ...]
    chat: bool

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return max(map(len, self.tokens)) + MAX_TOKENS


def user(text: str) -> Prompt:
    """What somebody asks, as a conversation of one turn."""
    return (Message("user", text),)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file.

    A ``.txt`` has one a line; a ``.jsonl`` has ``{"prompt": text}`` or ``{"messages": [{"role",
    "content"}, ...]}`` a line, of which a reply at the end is left out: it is what is asked for.

    Raises:
        UsageError: it cannot be read as that; says which line.
    """
    if path.suffix not in {".txt", ".jsonl"}:
        raise UsageError(f"--answers {path}: give a .txt, a .jsonl, or none")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UsageError(f"--answers {path}: {why}; name a readable file") from error
    # Not splitlines(): a JSON string may hold U+2028 and its like as they are.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"--answers {path}: has no prompt in it; give one a line")
    if path.suffix == ".txt":
        return tuple(user(line.rstrip("\r")) for _, line in lines)
    return tuple(_prompt(line, f"--answers {path}, line {number}") for number, line in lines)


def _prompt(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is not JSON; correct the line") from error
    found: Prompt = ()
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        found = user(record["prompt"])
    elif isinstance(record, dict) and isinstance(record.get("messages"), list):
        found = _conversation(record["messages"])
    if not any(message.content.strip() for message in found):
        raise UsageError(
            f'{where}: give {{"prompt": text}} or {{"messages": [{{"role": "user", "content": '
            "text}]}"
        )
    if any("\ud800" <= letter <= "\udfff" for m in found for letter in m.content):
        raise UsageError(f"{where}: holds half of a surrogate pair, which is not text; correct it")
    return found


def _conversation(turns: Sequence[Any]) -> Prompt:
    """The turns up to the last reply; empty where they are no conversation."""
    good = all(
        isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))
        for turn in turns
    )
    found = [Message(turn["role"], turn["content"]) for turn in turns] if good else []
    while found and found[-1].role == "assistant":
        found.pop()
    return tuple(found)


def prepare(model: Path, choice: str | None) -> Asked | None:
    """What the models are to be asked, in the tokens of the base `model`; None for nothing.

    Args:
        choice: a file; ``none``; None for the built-in prompts, if `model` has weights, a
            tokenizer and the context for them.

    Raises:
        UsageError: the file or the tokenizer cannot be used, or the template refuses a prompt.
    """
    if choice == "none" or (choice is None and not has_weights(model)):
        return None
    given = None if choice is None else read_prompts(Path(choice))
    tokenizer = _tokenizer(model, needed=given is not None)
    if tokenizer is None:
        return None
    chat = bool(tokenizer.chat_template)
    prompts = given or tuple(map(user, QUESTIONS if chat else BEGINNINGS))
    tokens = tuple(_tokens(tokenizer, prompt, chat, model) for prompt in prompts)
    asked, context = Asked(prompts, tokens, _stop(model, tokenizer), chat), context_of(model)
    if context is None or asked.context <= context:
        return asked
    if given is None:
        return None
    raise UsageError(
        f"--answers {choice}: a prompt and its answer take {asked.context} tokens, and the "
        f"context of {model} is {context}; give shorter prompts, or none"
    )


def _tokenizer(model: Path, *, needed: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # a malformed file can raise anything in there
        if not needed:
            return None
        reason = " ".join(str(error).split())[:150]
        raise UsageError(
            f"{model}: cannot load its tokenizer ({reason}); restore its files, or give "
            "--answers none"
        ) from error


def _tokens(tokenizer: Any, prompt: Prompt, chat: bool, model: Path) -> tuple[int, ...]:
    if not chat and len(prompt) > 1:
        raise UsageError(
            f"{model}: has no chat template, and a prompt of --answers has {len(prompt)} turns; "
            "give prompts of one turn"
        )
    if not chat:
        ids = tokenizer(prompt[0].content)["input_ids"]
    else:
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        try:
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever the model's own template raises
            reason = " ".join(str(error).split())[:150]
            raise UsageError(
                f"{model}: its chat template refuses a prompt of --answers ({reason}); give "
                "turns that it takes"
            ) from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(f"{model}: its tokenizer makes no tokens of a prompt; restore its files")
    return tuple(ids)


def _stop(model: Path, tokenizer: Any) -> tuple[int, ...]:
    """The end-of-text tokens of the generation config and of the tokenizer."""
    from transformers import GenerationConfig

    found: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        ends = None
    found += ends if isinstance(ends, list) else [] if ends is None else [ends]
    return tuple(dict.fromkeys(found))


def decode(model: Path, ids: Sequence[int]) -> str:
    """The text of an answer, without special tokens."""
    return _tokenizer(model, needed=True).decode(list(ids), skip_special_tokens=True)
