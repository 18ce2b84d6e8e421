"""The section on what the models say."""

from __future__ import annotations

from bench.conditions import Prompt
from bench.qualities import Answer
from bench.report.content import Part, Section, Table, missing
from bench.report.format import NOT_MEASURED
from bench.schema import Report

NEW_LINE = " ↵ "
#: So many prompts are there at once; the others are behind a fold.
OPEN = 1


def answers(report: Report) -> Section:
    """Prompts by row, models by column."""
    found = report.answers
    if found is None:
        why = "it failed, see above" if report.settings.answers else "not asked for"
        return Section("answers", "Answers", [missing("Answers", why)])
    way = "through the chat template" if found.chat else "as plain text to go on with"
    note = (
        f"Greedy, at most {found.max_tokens} tokens; prompts were given {way}. {NEW_LINE.strip()} "
        "is a new line; … is where an answer was cut off."
    )
    models = [model.id for model in report.models]
    rows = []
    for question in found.questions:
        said = {answer.model: _shown(answer) for answer in question.answers}
        rows.append([_asked(question.prompt), *(said.get(m, NOT_MEASURED) for m in models)])

    def table(part: list[list[str]]) -> Table:
        return Table(("prompt", *models), part, text_columns=1 + len(models))

    parts = [Part(table=table(rows[:OPEN]), text=(note,))]
    if len(rows) > OPEN:
        parts.append(Part("Further prompts", table=table(rows[OPEN:]), folded=True))
    return Section("answers", "Answers", parts, folded=False)


def _one_line(text: str) -> str:
    """`text` without line breaks; a blank line is two of the signs that stand for them."""
    return " ".join(NEW_LINE.join(text.strip().split("\n")).split())


def _asked(prompt: Prompt) -> str:
    if len(prompt) == 1:
        return _one_line(prompt[0].content)
    return " / ".join(f"{m.role}: {_one_line(m.content)}" for m in prompt)


def _shown(answer: Answer) -> str:
    text = _one_line(answer.text) or "(nothing)"
    return text if answer.finished else f"{text} …"
