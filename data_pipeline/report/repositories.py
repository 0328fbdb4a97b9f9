"""The report's part on repositories whose files are joined."""

from __future__ import annotations

from data_pipeline.report.values import Manifest, as_list, as_number, at, sum_of
from loopcoder.errors import counted
from loopcoder.page import Html, Number, element, join, tiles

_LABELS = {
    "repositories": "repositories",
    "documents": "documents of two files or more",
    "files_joined": "files in them",
    "files_left_single": "files that stay single",
    "files_without_repository": "files without repository",
}

_FAR = 2
"""Times that what is held out may differ from what was asked for without a word."""


def repositories(manifest: Manifest) -> Html:
    """Return how many files were joined, and how much is held out."""
    cards: list[tuple[str, object]] = [
        (label, Number(as_number(at(manifest, "repositories", key)) or 0))
        for key, label in _LABELS.items()
    ]
    cards.append(("of the code's tokens held out", Number(_held_out(manifest), ".1%")))
    about = (
        "The code files of one repository and language are one document, up to "
        "data.build.repository.max_bytes. A repository is held out as a whole."
    )
    return join((element("p", about, class_="soft"), tiles(cards)))


def in_words(manifest: Manifest) -> list[str]:
    """Return a line on what was joined, or none."""
    if at(manifest, "repositories") is None:
        return []
    count = {key: as_number(at(manifest, "repositories", key)) or 0 for key in _LABELS}
    none = count["files_without_repository"]
    single = count["files_left_single"] + none
    held = _held_out(manifest) or 0
    asked = as_number(at(manifest, "val_fraction")) or 0
    differs = held > _FAR * asked or asked > _FAR * held
    return [
        f"repositories: {count['repositories']:,}; files joined: {count['files_joined']:,} (to "
        f"{counted(int(count['documents']), 'document')}), left single: {single:,}"
        + (f" ({none:,} of no repository)" if none else "")
        + f"; held out, as whole repositories: {held:.1%} of the code's tokens"
        + (f", where data.build.val_fraction={asked:g} asks for {asked:.1%}" if differs else "")
    ]


def _held_out(manifest: Manifest) -> float | None:
    """Return the share of the code's tokens, before the quotas, that is held out."""
    held = as_number(at(manifest, "domains", "code", "val", "tokens"))
    rows = [r for r in as_list(at(manifest, "plan", "languages")) if r.get("domain") == "code"]
    supply = sum_of([as_number(row.get("supply_tokens")) for row in rows])
    return None if held is None or supply is None else held / (held + supply)
