"""Conversations as a chat model reads them: through its template, in windows of whole turns."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunecomp.calibration.records import Conversation
from prunecomp.calibration.tokenizer import encode, reason
from prunecomp.errors import UsageError

#: Templates that write today's date write this one, so that tokens do not change overnight.
_TODAY = datetime.datetime(2024, 7, 26)
#: So many conversations in a row that fit into no window end the search.
_PATIENCE = 16


class TemplateRefusalError(Exception):
    """A template does not take a conversation: for its roles, or for their order."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        UsageError: it has none.
    """

    def __init__(self, tokenizer: Any, *, directory: Path, source: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"{source}: holds chat messages, and the tokenizer of {directory} has no chat "
                "template; add its chat_template.jinja, or name a field of text with "
                "--calibration-field and --chat-field none"
            )
        self._tokenizer = tokenizer

    def text(self, messages: Conversation) -> str:
        """What the template makes of the messages.

        Raises:
            TemplateRefusalError: the template does not take them.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=False, strftime_now=_TODAY.strftime
            )
        except Exception as error:  # a template is a program of its own
            raise TemplateRefusalError(reason(error)) from error
        assert isinstance(text, str)
        return text

    def turns(self, messages: Conversation) -> list[list[int]]:
        """Token ids turn by turn; one behind the other they are those of the whole conversation.

        A turn ends where the conversation could end. Where the template writes earlier turns in
        another way once there are later ones, they cannot be told apart and are one turn.

        Raises:
            TemplateRefusalError: the template does not take the messages.
        """
        whole, turns, done = self.text(messages), [], 0
        for count in range(1, len(messages)):
            text = self._beginning(messages[:count])
            if text is not None and len(text) > done and whole.startswith(text):
                turns.append(whole[done : len(text)])
                done = len(text)
        turns.append(whole[done:])
        found = [encode(self._tokenizer, turn) for turn in turns if turn]
        tokens = encode(self._tokenizer, whole)
        return found if [t for turn in found for t in turn] == list(tokens) else [list(tokens)]

    def _beginning(self, messages: Conversation) -> str | None:
        try:
            return self.text(messages)
        except TemplateRefusalError:  # such as a system message alone, in some templates
            return None


@dataclass
class _Window:
    """What is in one sample, and which of it counts."""

    ids: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, counts: bool = True) -> None:
        self.ids += ids
        self.counted += [counts] * len(ids)


class Packer:
    """Fills windows with conversations, of which every turn is whole.

    A window begins with the prefix, then a conversation. Another one follows where it fits as a
    whole; what is left over is padding. Of a conversation that is longer than a window, the turns
    that fit are taken; one whose first turn does not fit is left out.
    """

    def __init__(
        self, template: ChatTemplate, *, samples: int, seq_len: int, prefix: Sequence[int]
    ) -> None:
        self._template, self._samples, self._seq_len = template, samples, seq_len
        self._prefix = list(prefix)
        self._windows: list[_Window] = []
        self._missed = 0
        self.taken = self.too_long = 0
        self.refused: list[str] = []

    @property
    def full(self) -> bool:
        """Whether there is no use in further conversations."""
        return len(self._windows) == self._samples and self._missed >= _PATIENCE

    def add(self, conversations: Iterable[Conversation]) -> None:
        """Packs them, until the windows are full."""
        for messages in conversations:
            if self.full:
                return
            try:
                turns = self._template.turns(messages)
            except TemplateRefusalError as error:
                self.refused.append(str(error))
                continue
            if any(turns):
                self._place(turns)

    def _place(self, turns: list[list[int]]) -> None:
        begins = len(self._prefix) and turns[0][: len(self._prefix)] == self._prefix
        own = self._prefix if begins else []  # written by the template itself
        turns[0] = turns[0][len(own) :]
        whole = len(own) + sum(map(len, turns))
        window = next((w for w in self._windows if len(w.ids) + whole <= self._seq_len), None)
        if window is None:
            self._missed += 1
            if len(self._windows) == self._samples:
                return
            turns = self._fitting(turns)
            if not turns:
                self.too_long += 1
                return
            window, own = _Window(), self._prefix
            self._windows.append(window)
        self._missed = 0
        self.taken += 1
        window.add(own, counts=False)
        for turn in turns:
            window.add(turn)

    def _fitting(self, turns: list[list[int]]) -> list[list[int]]:
        """As many of the first turns as fit into an empty window."""
        room, fitting = self._seq_len - len(self._prefix), []
        for turn in turns:
            room -= len(turn)
            if room < 0:
                break
            fitting.append(turn)
        return fitting if sum(map(len, fitting)) > 1 else []

    def windows(self, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [samples, seq_len] int64, filled up with `pad`, and which of them count, bool."""
        rest = [self._seq_len - len(w.ids) for w in self._windows]
        each = list(zip(self._windows, rest, strict=True))
        ids = [w.ids + [pad] * r for w, r in each]
        counted = [w.counted + [False] * r for w, r in each]
        return torch.tensor(ids, dtype=torch.int64), torch.tensor(counted, dtype=torch.bool)

    def check(self, source: str) -> None:
        """Raises `UsageError` where nothing could be packed."""
        if self._windows:
            return
        if self.refused:
            raise UsageError(
                f"{source}: the chat template refuses all conversations "
                f"({self.refused[0][:120]}); correct the messages"
            )
        if self.too_long:
            raise UsageError(
                f"{source}: no first turn fits into a window of {self._seq_len} tokens; give a "
                "larger --seq-len"
            )
        raise UsageError(f"{source}: the calibration text is empty; name another source")

    def notes(self, counted: torch.Tensor) -> list[str]:
        """What is worth telling."""
        padding = 1 - counted[:, len(self._prefix) :].double().mean()
        found = [
            f"chat: {self.taken} conversations in {len(counted)} windows, {padding:.0%} padding, "
            "which counts nowhere"
        ]
        if self.too_long:
            found.append(
                f"{self.too_long} conversations were left out: their first turn is longer than a "
                f"window of {self._seq_len} tokens"
            )
        if self.refused:
            found.append(
                f"{len(self.refused)} conversations were left out: the chat template refuses them "
                f"({self.refused[0][:120]})"
            )
        return found
