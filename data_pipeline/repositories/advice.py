"""What to set where files belong to no repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.readers.columns import shown_columns
from loopcoder.config.build import BuildConfig, SourceConfig
from loopcoder.config.fields import typed
from loopcoder.errors import InputError, counted

Lacking = Mapping[str, Mapping[str, Sequence[str]]]
"""By source, the fields that name nothing in some row, with the columns of its table."""


def no_repository(build: BuildConfig, lacking: Lacking) -> InputError:
    """Return the error for a corpus none of whose files belongs to a repository.

    Args:
        build: Of the corpus.
        lacking: Of its sources.
    """
    whys, fixes = [], []
    for index, source in enumerate(build.sources):
        for key, columns in lacking.get(f"{index}-{source.kind}", {}).items():
            field = "repository_field" if key == source.repository_field else "path_field"
            wanted = "text or a whole number" if field == "repository_field" else "text"
            whys.append(
                f"source {index}-{source.kind} has rows of code without {wanted} in "
                f"{field}={key}; their columns are {shown_columns(columns)}"
            )
            fixes.append(typed(f"data.build.sources.{index}.{field}={_likeliest(columns, source)}"))
    depth = build.repository.depth
    if not fixes:
        fixes = [
            "data.build.sources.0.repository_field=COLUMN with "
            "data.build.sources.0.path_field=COLUMN for rows",
            "a path above the repositories",
            *([f"data.build.repository.depth={depth - 1}"] if depth > 1 else []),
        ]
    return InputError.of(
        "data.build.repository.enabled=true, and no code file of the sources belongs to a "
        "repository",
        "; ".join(
            [
                "repositories are what repository_field of rows names, packages, archives, and "
                f"{depth} folder(s) below the path of a source",
                *whys,
            ]
        ),
        ", or ".join([" ".join(fixes) if whys else ", or ".join(fixes), _OFF]),
    )


def lone_files(build: BuildConfig, code: Mapping[str, int], lone: Mapping[str, int]) -> list[str]:
    """Return a line for each source most of whose code belongs to no repository, and what mends it.

    Args:
        build: Of the corpus.
        code: Code documents of each source.
        lone: Those of them that belong to no repository.
    """
    lines = []
    for index, source in enumerate(build.sources):
        name = f"{index}-{source.kind}"
        if source.kind == "sample" or 2 * lone.get(name, 0) <= code.get(name, 0):
            continue
        field = f"data.build.sources.{index}.repository_field"
        if source.kind == "hf" or source.repository_field or source.language_field:
            why = "rows that do not name both their repository and their file stay single"
            fix = f"{field}=COLUMN with {field.replace('repository_field', 'path_field')}=COLUMN"
        else:
            depth = build.repository.depth
            why = (
                "files directly below the path stay single"
                if depth == 1
                else f"files less than {depth} folders below the path stay single"
            )
            fix = "the folder above as path"
            fix += f", or data.build.repository.depth={depth - 1}" if depth > 1 else ""
        lines.append(
            f"{lone[name]:,} of the {counted(code[name], 'code file')} of source {name} have no "
            f"repository: {why}; fix: {fix}"
        )
    return lines


_OFF = "data.build.repository.enabled=false"


def _likeliest(columns: Sequence[str], source: SourceConfig) -> str:
    """Return the only column that is not used yet, else a word that stands for one."""
    left = list(_unused(columns, source))
    return left[0] if len(left) == 1 else "COLUMN"


def _unused(columns: Sequence[str], source: SourceConfig) -> Iterator[str]:
    used = {source.text_field, source.language_field, source.licence_field}
    used |= {source.repository_field, source.path_field}
    return (column for column in columns if column not in used)
