"""What a line of a ``.jsonl``, or a row of a data set, holds: a text, or a conversation.

A conversation is a list of messages ``{"role", "content"}``, as chat templates take it. Lists of
``{"from", "value"}`` (ShareGPT) are put into that form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prunecomp.errors import UsageError

Conversation = list[dict[str, Any]]

#: Fields in which a conversation is found where none is named.
CHAT_FIELDS = ("messages", "conversations", "conversation")
#: ``from`` of ShareGPT, and the roles that templates know.
_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    )


def chat_field_of(record: Any, *, field: str, chat_field: str) -> str | None:
    """The field that holds the conversation; None where the record is to be read as a text.

    Args:
        field: of the text; another one than ``text`` was asked for by the user.
        chat_field: what was asked for: a field, ``auto`` to look for one, or ``none``.
    """
    if chat_field != "auto":
        return None if chat_field == "none" else chat_field
    found = record if isinstance(record, dict) else {}
    names = (field, *CHAT_FIELDS) if field == "text" else (field,)
    return next((name for name in names if _is_chat(found.get(name))), None)


def _lacks(record: Any) -> str:
    """What the record has instead, for an error that goes on with what it has not."""
    if not isinstance(record, dict):
        return "is no JSON object, and has no"
    names = ", ".join(str(name) for name in record)
    return f"has the fields {names if len(names) <= 80 else names[:77] + '...'}, and no"


def text_of(record: Any, field: str, *, where: Any) -> str:
    """The text under `field`.

    Args:
        where: the place of the record, for errors.

    Raises:
        UsageError: there is none, or it cannot be text.
    """
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise UsageError(
            f"{where}: {_lacks(record)} text under {field[:60]!r}; name one with "
            "--calibration-field, or a list of messages with --chat-field"
        )
    _check_characters(record[field], where)
    return record[field]


def _check_characters(text: str, where: Any) -> None:
    if _HALF_A_PAIR.search(text):
        raise UsageError(
            f"{where}: holds half of a surrogate pair, which is not text; correct the line"
        )


def conversation_of(record: Any, field: str, *, where: Any) -> Conversation:
    """The messages under `field`; a text under ``system`` beside them is the first message.

    Raises:
        UsageError: they are none.
    """
    value = record.get(field) if isinstance(record, dict) else None
    if not _is_chat(value):
        raise UsageError(
            f"{where}: {_lacks(record)} list of messages under {field[:60]!r}; name one "
            "with --chat-field, or a text with --calibration-field"
        )
    messages = [_message(message, where) for message in value]
    system = record.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(message: Mapping[str, Any], where: Any) -> dict[str, Any]:
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    calls = content is None and message.get("tool_calls")
    if not isinstance(role, str) or not (isinstance(content, str) or calls):
        raise UsageError(
            f"{where}: a message has no text (its fields are {', '.join(map(str, message))[:80]}); "
            "messages have a role and a content of text"
        )
    _check_characters(content or "", where)
    rest = {k: v for k, v in message.items() if k not in {"role", "from", "content", "value"}}
    return {**rest, "role": _ROLES.get(role, role), "content": content or ""}
