"""What a benchmark report says of quality: accuracy, perplexity, and answers to prompts."""

from __future__ import annotations

from dataclasses import dataclass

from bench.conditions import Prompt


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task for one model.

    Attributes:
        group: the task set that was asked for, or the task itself.
        chance: what guessing gives, where it is known.
        kind: ``choice`` or ``generation``.
    """

    model: str
    task: str
    group: str
    metric: str
    value: float
    stderr: float | None
    n: int
    chance: float | None = None
    kind: str = "choice"


@dataclass(frozen=True)
class Retained:
    """``pruned / base`` of one task."""

    model: str
    task: str
    group: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class MeanRetained:
    """The mean of `Retained` over the tasks of a group."""

    model: str
    group: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Perplexity:
    """Of one model on one text."""

    model: str
    text: str
    value: float
    tokens: int


@dataclass(frozen=True)
class Accuracy:
    """What lm-eval says, and perplexities.

    Attributes:
        prefix: tokens that every text begins with, as the base's tokenizer puts them; null in
            reports from before this was noted.
    """

    engine: str
    num_fewshot: int | None
    results: tuple[TaskResult, ...] = ()
    retained: tuple[Retained, ...] = ()
    mean_retained: tuple[MeanRetained, ...] = ()
    perplexity: tuple[Perplexity, ...] = ()
    prefix: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """What one model said; `finished` where it ended by itself and was not cut off."""

    model: str
    text: str
    output_tokens: int
    finished: bool


@dataclass(frozen=True)
class Question:
    """One prompt, and the answers in the order of the models; one that failed gave none."""

    prompt: Prompt
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Answers:
    """What the models say, greedily; `chat` where the prompts went through a chat template."""

    chat: bool
    max_tokens: int
    questions: tuple[Question, ...]
