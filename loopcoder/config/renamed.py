"""Names that fields once had: one table for the command line, old files and the names of runs.

Whoever renames a field adds a line, and three things follow: its old spelling is an error that
names the new one; a config.yaml or manifest of before is read; and runs and corpora keep their
names, since their hashes are made of the names that fields had first. An old name is never given
to another field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TO_BUILD = (
    "sources", "cache_dir", "tokenizer", "tokenizer_backend", "tokenizer_vocab_size",
    "tokenizer_train_bytes", "val_fraction", "invalid_utf8", "language_confidence",
    "unknown_language", "filters", "near_dedup", "decontaminate", "shares", "target_tokens",
    "epochs", "fim", "shards", "part_bytes", "worker_bytes", "executor", "keep_work",
)  # fmt: skip

FIELDS = {
    **{f"data.{name}": f"data.build.{name}" for name in _TO_BUILD},
    "data.language_model": "data.build.language_classifier",
    "model.init_depth": "model.output_init",
}
"""First name of a field or section, with all that is below it, and its name today."""

MANIFEST_KEYS = {"side": "domain", "sides": "domains"}
"""Keys of corpus manifests, wherever they stand in one, and their names today."""


def new_name(key: str) -> str | None:
    """Return the name today of a dotted key by its old name, or None if it never had another."""
    for old, new in FIELDS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return None


def translate(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config, nested by section, under their names of today."""
    return _moved(plain, FIELDS)


def first_names(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config under the names that they had first: what is hashed."""
    return _moved(plain, {new: old for old, new in FIELDS.items()})


def translate_manifest(plain: Any) -> Any:
    """Return a corpus manifest, or a part of one, with the keys of today."""
    if isinstance(plain, dict):
        return {MANIFEST_KEYS.get(k, k): translate_manifest(v) for k, v in plain.items()}
    return [translate_manifest(v) for v in plain] if isinstance(plain, list) else plain


_Path = tuple[Any, ...]


def _moved(plain: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Copy nested fields, those in `names` to their other place."""
    paths = {tuple(old.split(".")): tuple(new.split(".")) for old, new in names.items()}
    result: dict[str, Any] = {}
    for path, value in _entries(plain, paths):
        *above, name = paths.get(path, path)
        section = result
        for part in above:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[name] = value
    return result


def _entries(
    plain: Mapping[Any, Any], paths: Mapping[_Path, _Path], above: _Path = ()
) -> Iterator[tuple[_Path, Any]]:
    """Yield fields with their paths; a section is taken apart where something in it moves."""
    for name, value in plain.items():
        path = (*above, name)
        if value and isinstance(value, dict) and any(p[: len(path)] == path < p for p in paths):
            yield from _entries(value, paths, path)
        else:
            yield path, dict(value) if isinstance(value, dict) else value
