"""Cards to one table: scores of several models, their differences tested, published numbers below.

In: folders that `kilopix evaluate`, `fidelity` or another evaluator wrote, or their cards. Out: `compare.md`
and `compare.html`. Cards whose protocols differ are refused, or put in one table with the differences marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kilopix.artefacts.locks import owns
from kilopix.english import counted
from kilopix.evaluation.comparison import Entry, Row, Unlike, differs, rows, unlike
from kilopix.evaluation.protocol import JUDGED, OBSERVATIONS, RESULTS, Score, card_of, lines_beside, read_card
from kilopix.evaluation.published import Published, read_published
from kilopix.evaluation.statistics import Interval, Observations, bootstrap, observe
from kilopix.jobs import check_report, write_report
from kilopix.plain_text import in_markdown, on_page
from kilopix.progress import working
from kilopix.runtime import say
from kilopix.scores_shown import protocol_told
from kilopix.types import UserError

MARKDOWN, HTML = "compare.md", "compare.html"
MARK = "†"


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is to stand out."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table as it is printed: a title, what to know of it, a header, lines."""

    title: str
    note: str
    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]


@owns("out")
def run(cards: Sequence[Path], out: Path, allow_unlike: bool = False, published: bool = True) -> list[Table]:
    """Write the tables; raises `UserError` that names every difference where protocols are unlike."""
    entries = [_read_entry(path, label) for path, label in zip(cards, _labels(cards), strict=True)]
    different = unlike(entries)
    if different and not allow_unlike:
        shown = "; ".join(f"{one.name} ({' against '.join(one.values)})" for one in different)
        raise UserError(
            f"these scores do not compare: their protocols differ in {shown}. "
            "--allow-unlike puts them in one table all the same and marks the differences."
        )
    with working("test the differences"):
        found = rows(entries)
    if len(entries) > 1 and not any(sum(score is not None for score in row.scores) > 1 for row in found):
        raise UserError("no two of these cards have a score of the same name.")
    tables = [_scores_table(entries, found, bool(different)), _protocol_table(entries, different)]
    facts, after = read_published(), []
    if published and (beside := _published_table(entries, found, facts)):
        tables.append(beside)
        after = _sources(facts)
    text = _markdown(tables, after)
    check_report(out / HTML, "compare")
    write_report(out / MARKDOWN, text, "compare")
    write_report(out / HTML, _html(tables, after), "compare")
    say(text)
    say(f"{out / MARKDOWN} and {HTML}: {counted(len(entries), 'card')}, {counted(len(found), 'score')}.")
    return tables


def _labels(cards: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the cards apart."""
    folders = [path.parent if path.suffix == ".json" else path for path in cards]
    names = [folder.resolve().parts for folder in folders]
    if len(set(names)) < len(names):
        raise UserError("the same card is given twice.")
    deepest = max(len(parts) for parts in names)
    depth = next(d for d in range(1, deepest + 1) if len({n[-d:] for n in names}) == len(names))
    return ["/".join(parts[-depth:]) for parts in names]


def _read_entry(path: Path, label: str) -> Entry:
    card_path = card_of(path)
    card = read_card(card_path)
    values = {score.name: score.value for score in card.scores}
    observations = {n: o for n, o in _observations(card_path).items() if n in values}
    for name, one in observations.items():
        mean = bootstrap(one, resamples=1).value
        if abs(mean - values[name]) > 1e-4 * max(1.0, abs(mean)):
            raise UserError(
                f"{card_path}: its {name} is {values[name]:.6g}, but that of the single pictures beside it "
                f"{mean:.6g}; score the pictures again."
            )
    return Entry(label, card, observations)


def _observations(card: Path) -> dict[str, Observations]:
    """The scores of single pictures, as the evaluators keep them beside their cards."""
    if card.with_name(OBSERVATIONS).is_file():
        return _from_observations(lines_beside(card, OBSERVATIONS))
    if card.with_name(JUDGED).is_file():
        spaced = [{**line, "tag": line["tag"].replace("_", " ")} for line in lines_beside(card, JUDGED)]
        return _by_task(spaced, "mean of six tasks", "")
    if card.with_name(RESULTS).is_file():
        lines = lines_beside(card, RESULTS)
        if lines and "item" in lines[0]:
            scores = [100 * line["score"] for line in lines]
            return {"DPG-Bench": observe(scores, [line["item"] for line in lines], most=100.0)}
        return _by_task(lines, "GenEval, mean of tasks", "GenEval, ")
    return {}


def _from_observations(lines: list[dict[str, Any]]) -> dict[str, Observations]:
    """`values` by name for every picture; pictures without a prompt are paired by their file."""
    names = dict.fromkeys(name for line in lines for name in line["values"])
    keys = [line.get("prompt", line["file"]) for line in lines]
    return {name: observe([line["values"][name] for line in lines], keys) for name in names}


def _by_task(lines: list[dict[str, Any]], whole: str, prefix: str) -> dict[str, Observations]:
    """Verdicts as 1 and 0: the mean of the tasks, and every task."""

    def of(chosen: list[dict[str, Any]]) -> Observations:
        columns = [[line[key] for line in chosen] for key in ("correct", "prompt", "tag")]
        return observe([float(value) for value in columns[0]], columns[1], columns[2], most=1.0)

    tags = dict.fromkeys(line["tag"] for line in lines)
    each = {f"{prefix}{tag}": of([line for line in lines if line["tag"] == tag]) for tag in tags}
    return {whole: of(lines), **each}


def _number(value: float) -> str:
    return f"{value:.4g}"


def _score(score: Score | None) -> Cell:
    if score is None:
        return Cell("")
    if score.low is None or score.high is None:
        return Cell(_number(score.value))
    return Cell(f"{_number(score.value)} ({_number(score.low)} to {_number(score.high)})")


def _difference(one: Interval | str | None) -> Cell:
    if one is None:
        return Cell("")
    if isinstance(one, str):
        return Cell(one)
    text = f"{one.value:+.4g} ({one.low:+.4g} to {one.high:+.4g})"
    return Cell(text, differs(one))


def _scores_table(entries: list[Entry], found: list[Row], marked: bool) -> Table:
    first = entries[0].label
    note = "Intervals are of 95%, over prompts."
    if len(entries) > 1:
        note += (
            f" Differences are from {first}, of both scores over the same prompts; in bold where the "
            "interval leaves out zero, which it does by chance for one score in twenty."
        )
    cautions = dict.fromkeys(
        f" {score.name} of {entry.label}: {score.caution}."
        for entry in entries
        for score in entry.card.scores
        if score.caution
    )
    note += "".join(cautions)
    if marked:
        note += f" {MARK} The protocols differ, see below: a difference may come from there."
    mark = f" {MARK}" if marked else ""
    header = ["score", *(f"{entry.label}{mark}" for entry in entries)]
    header += [f"{entry.label} less {first}{mark}" for entry in entries[1:]]
    lines = [
        (Cell(row.name), *(_score(score) for score in row.scores), *(_difference(d) for d in row.differences))
        for row in found
    ]
    return Table("Scores", note, tuple(header), tuple(lines))


def _protocol_table(entries: list[Entry], different: list[Unlike]) -> Table:
    """What was measured, then how; what differs is marked."""
    told = [dict(protocol_told(entry.card)) for entry in entries]
    lines = [(Cell(name), *(Cell(one[name]) for one in told)) for name in told[0]]
    lines += [(Cell(f"{MARK} {one.name}", True), *(Cell(v, True) for v in one.values)) for one in different]
    names = ", ".join(one.name for one in different)
    note = f"{MARK} differs: {names}." if different else "The same protocol for all."
    return Table("Protocol", note, ("", *(entry.label for entry in entries)), tuple(lines))


def _published_table(entries: list[Entry], found: list[Row], facts: Published) -> Table | None:
    """Measured and published numbers of the scores that both have."""
    published = {score.metric for model in facts.models for score in model.scores}
    metrics = [row.name for row in found if row.name in published]
    if not metrics:
        return None
    numbers = {key: i for i, key in enumerate(facts.sources, 1)}
    measured = {row.name: row.scores for row in found}
    lines = [
        (Cell(entry.label, True), *(_score(measured[metric][i]) for metric in metrics))
        for i, entry in enumerate(entries)
    ]
    for model in facts.models:
        texts = [
            " or ".join(
                f"{score.value:g} [{numbers[score.source]}]"
                for score in model.scores
                if score.metric == metric
            )
            for metric in metrics
        ]
        if any(texts):
            lines.append((Cell(model.name), *map(Cell, texts)))
    note = (
        "Numbers in brackets name the source. Published numbers are of their authors' pictures, prompts and "
        "evaluators, which are not those of the protocol above. Where two sources differ, both are shown."
    )
    return Table("Beside published numbers", note, ("model", *metrics), tuple(lines))


def _sources(facts: Published) -> list[str]:
    """What is published in words only, and the sources under their numbers."""
    numbers = {key: i for i, key in enumerate(facts.sources, 1)}
    notes = [f"{note.text} [{numbers[note.source]}]" for note in facts.notes]
    return notes + [f"[{numbers[key]}] {one.title} ({one.where})." for key, one in facts.sources.items()]


def _markdown(tables: list[Table], after: list[str]) -> str:
    def cell(one: Cell) -> str:
        text = in_markdown(one.text)
        return f"**{text}**" if one.strong and text else text

    blocks = []
    for table in tables:
        lines = [tuple(map(in_markdown, table.header)), tuple("---" for _ in table.header)]
        lines += [tuple(cell(one) for one in line) for line in table.lines]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        blocks.append(f"## {in_markdown(table.title)}\n\n{in_markdown(table.note)}\n\n{body}\n")
    return "\n".join([*blocks, *(f"{line}\n" for line in after)])


def _html(tables: list[Table], after: list[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("kilopix.stages").joinpath("compare.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, autoescape=True, finalize=on_page, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(tables=tables, after=after)
