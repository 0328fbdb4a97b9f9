"""The report of diagnoses for people: one page of HTML that loads nothing, with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loopcoder.diagnose.compare import compare
from loopcoder.diagnose.definitions import MEASURES, title
from loopcoder.diagnose.figures import drawings, inlined, save
from loopcoder.diagnose.panels import Drawing
from loopcoder.diagnose.reading import labels, not_finite, trained_loops
from loopcoder.diagnose.recommend import recommend
from loopcoder.diagnose.report_tables import exits, facts, groups, layers, overview
from loopcoder.diagnose.results import Diagnosis
from loopcoder.errors import InputError
from loopcoder.page import Html, Number, element, join, page, table
from loopcoder.storage.files import write_bytes

REPORT, FIGURES = "report.html", "figures"


def write_report(diagnoses: Sequence[Diagnosis], folder: Path) -> Path:
    """Write report.html, with everything in it, and figures/*.svg for print into a folder.

    Returns:
        The path of the page.

    Raises:
        InputError: there is no diagnosis, or matplotlib is not installed.
    """
    if not diagnoses:
        raise InputError.of(
            "there is no diagnosis to report",
            "a report shows what was measured of checkpoints",
            "loopcoder diagnose checkpoint=DIR",
        )
    drawn = []
    for drawing in drawings(diagnoses):
        svg = save(drawing, folder / FIGURES).read_text(encoding="utf-8")
        drawn.append((drawing, svg))
    path = folder / REPORT
    write_bytes(path, _render(diagnoses, drawn).encode())
    return path


def _render(diagnoses: Sequence[Diagnosis], drawn: Sequence[tuple[Drawing, str]]) -> str:
    short = labels(diagnoses)
    sections = [
        ("recommendation", "How many loops", _recommendations(diagnoses, short)),
        ("measured", "What was measured", facts(diagnoses, short)),
        ("overview", "Loop by loop", overview(diagnoses, short)),
        ("figures", "Figures", join(_figure(*one) for one in drawn)),
        ("exits", "Leaving the loops early", exits(diagnoses, short)),
        ("groups", "All numbers, by domain and language", groups(diagnoses, short)),
        ("layers", "All numbers, by layer", layers(diagnoses, short)),
        ("definitions", "Definitions", _definitions(diagnoses)),
        ("notes", "What was not measured", _notes(diagnoses, short)),
    ]
    sections = [section for section in sections if section[2]]
    return page(
        "What the loops bring",
        element("h1", "What the loops bring"),
        element(
            "p",
            "A looped transformer runs its layers R times. This page shows what each of these "
            "loops changes and costs in the models below; values are means with 95% intervals in "
            "which sequences, not tokens, are the independent units.",
        ),
        _contents([(name, words) for name, words, _ in sections], drawn),
        *(
            element("section", element("h2", words, id=name), content)
            for name, words, content in sections
        ),
    )


def _contents(sections: Sequence[tuple[str, str]], drawn: Sequence[tuple[Drawing, str]]) -> Html:
    def link(name: str, words: str) -> Html:
        return element("a", words, href=f"#{name}")

    figures = element("ol", *(element("li", link(_id(d), d.title)) for d, _ in drawn))
    entries = (
        element("li", link(*section), figures if section[0] == "figures" else "")
        for section in sections
    )
    return element("nav", element("ol", *entries), aria_label="Contents")


def _id(drawing: Drawing) -> str:
    return f"figure-{drawing.name}"


def _figure(drawing: Drawing, svg: str) -> Html:
    label = f"{drawing.title}. {drawing.caption} The numbers are in the tables of this page."
    return element(
        "figure",
        element("h3", drawing.title),
        inlined(svg, f"{drawing.name}-", label),
        element(
            "figcaption",
            f"{drawing.caption} ",
            element("span", f"{FIGURES}/{drawing.name}.svg", class_="soft"),
        ),
        id=_id(drawing),
        class_="full",
    )


def _recommendations(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    compared = compare(diagnoses)
    parts = [
        element(
            "p",
            "A heuristic, no proof: what a model with other loops does, only training it shows. "
            "A difference counts where its 95% interval leaves out zero; where it was not measured "
            "itself, two values are taken to be independent, which makes it rather too wide.",
            class_="soft",
        )
    ]
    if compared is not None:
        parts += [
            element("h3", "Trained models beside each other"),
            element("p", element("strong", compared.text)),
            _list(compared.reasons),
        ]
    each = [recommend(d) for d in diagnoses]
    rows = [
        (name, Number(trained_loops(d)), Number(found.loops), element("span", found.text))
        for name, d, found in zip(short, diagnoses, each, strict=True)
    ]
    head = ("", "R of training", "recommended R", "")
    caption = "What each model says, by the heuristic"
    parts += [element("h3", "Each model on its own"), table(head, rows, caption=caption)]
    for name, found in zip(short, each, strict=True):
        summary = element("summary", f"Reasons: {name}")
        is_only = {"open": ""} if len(each) == 1 else {}
        parts.append(element("details", summary, _list(found.reasons), **is_only))
    return join(parts)


def _list(entries: Sequence[str]) -> Html:
    return element("ul", *(element("li", entry) for entry in entries))


def _definitions(diagnoses: Sequence[Diagnosis]) -> Html:
    taken = {series.measure for d in diagnoses for series in d.series}
    rows = (
        join((element("dt", title(name)), element("dd", known.meaning)))
        for name, known in MEASURES.items()
        if name in taken
    )
    head = element(
        "p",
        Html(
            "Loops are counted from 1 (in metrics.jsonl from 0); "
            "<i>h</i><sup>(<i>r</i>)</sup> is the state of a token after loop <i>r</i> and "
            "<i>h</i><sup>(0)</sup> its embedding; "
            "<i>p</i><sup>(<i>r</i>)</sup> is what the head predicts from it. Norms are L2, "
            "logarithms natural."
        ),
    )
    return join((head, element("dl", *rows)))


def _notes(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    parts = []
    for name, diagnosis in zip(short, diagnoses, strict=True):
        notes = list(diagnosis.notes)
        if trained_loops(diagnosis) == 1:
            notes.append("One loop: what compares two loops is not defined.")
        if bad := not_finite(diagnosis):
            notes.append(f"Not finite, and left out everywhere: {', '.join(bad)}.")
        if notes:
            parts += [element("h3", name), _list(notes)]
    return join(parts)
