"""Names in `data` that stand for nothing are refused with the nearest one, by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.balance.names import missing_shares, unknown_shares
from loopcoder.config.build import SourceConfig
from loopcoder.config.check_names import check_names
from loopcoder.config.data import StageConfig
from loopcoder.config.filters import FilterConfig
from tests.configs import data_config

FILES = [SourceConfig(kind="files", path="x")]
ROWS = [SourceConfig(kind="files", path="x", language_field="lang")]


def problems(**fields: Any) -> list[str]:
    base = {"name": "test", "seq_length": 8, "mixture": {"text": 1, "code": 1}, "sources": FILES}
    data = data_config(**(base | fields))
    return [str(problem) for problem in (*check_names(data), *unknown_shares(data))]


@pytest.mark.parametrize(
    ("fields", "fact", "fix"),
    [
        ({"mixture": {"text": 1, "cdoe": 2}}, "no domain 'cdoe'", "'data.mixture={text:1,code:2}'"),
        ({"mixture": {"Text": 1}}, "no domain 'Text'", "'data.mixture={text:1}'"),
        ({"mixture": {"code": 1, "coed": 2}}, "no domain 'coed'", "={text:1,code:1}'"),
        ({"mixture": {"prose": 1}}, "no domain 'prose'", "'data.mixture={text:1,code:1}'"),
        (
            {"mixture": {"code": 1, "Python": 1}},
            "no domain 'Python'",
            "'data.corpora=[{path:FOLDER",
        ),
        ({"mixture": {"0-files": 1}}, "no domain '0-files'", "'data.corpora=[{path:FOLDER"),
        (
            {"stages": [StageConfig(mixture={"txt": 1})]},
            "no domain 'txt'",
            "'data.stages.0.mixture={text:1}'",
        ),
        ({"epochs": {"code": 2}}, "data.build.epochs={code:2}", "={code:2,text:1}'"),
        ({"epochs": {"text": 2, "cod": 2}}, "no domain 'cod'", "={text:2,code:2}'"),
        ({"shares": {"Pyhton": 1, "*": 2}}, "no code is in 'Pyhton'", "={Python:1,*:2}'"),
        ({"shares": {"python": 1}}, "no code is in 'python'", "={Python:1}'"),
        ({"shares": {"golang": 1}}, "no code is in 'golang'", "={Go:1}'"),
        ({"shares": {"Text": 1}}, "it is prose", "one of "),
        ({"shares": {"Quux9": 1}}, "no code is in 'Quux9'", "one of "),
        ({"shares": {"Pyhton": 1}, "sources": ROWS}, "no code is in 'Pyhton'", "={Python:1}'"),
        ({"shares": {"": 1}}, "no code is in ''", "one of "),
        ({"shares": {"Python": 0}}, "data.build.shares={Python:0}", "data.build.shares=supply"),
        (
            {"filters": FilterConfig(source_licences={"file": "MIT"})},
            "names the source 'file'",
            "write 0-files",
        ),
        (
            {"filters": FilterConfig(allowed_by_source={"0_files": ["MIT"]})},
            "names the source '0_files'",
            "write 0-files",
        ),
        (
            {"filters": FilterConfig(allowed_licences=["Apache 2.0"])},
            "names the licence 'Apache 2.0'",
            "write Apache-2.0",
        ),
        ({"tokenizer": "~nosuchuser/x"}, "data.build.tokenizer is", "data.build.tokenizer=PATH"),
        ({"cache_dir": "~nosuchuser/x"}, "no user 'nosuchuser'", "data.build.cache_dir=PATH"),
        ({"language_classifier": "a\0b"}, "'a\\x00b'", "data.build.language_classifier=PATH"),
        ({"path": "a" * 5000}, "File name too long", "data.path=PATH"),
        ({"path": ["x", "\ud800"]}, "no name of a file", "data.path=PATH"),
    ],
)
def test_the_nearest_name_is_offered(fields: dict[str, Any], fact: str, fix: str) -> None:
    (problem,) = problems(**fields)
    assert fact in problem and fix in problem.partition("fix: ")[2]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epochs": {"code": 2}, "mixture": {"code": 1}},
        {"shares": {"Python": 1, "*": 2, "unknown": 0}},
        {"shares": {"Racket++": 1}, "sources": ROWS},
        {"mixture": {"maths": 1}, "sources": [], "path": "x"},
        {"filters": FilterConfig(allowed_licences=["mit", "LicenseRef-ours", "GPL-2.0-only"])},
        {"path": "s3://bucket/x"},
        {"path": "x/" + "[ab]" * 100},
    ],
)
def test_what_exists_is_not_refused(fields: dict[str, Any]) -> None:
    assert problems(**fields) == []


def test_a_language_that_the_corpus_lacks_is_said() -> None:
    rows = [
        {"domain": "code", "language": "Python", "supply_tokens": 9},
        {"domain": "code", "language": "Rust", "supply_tokens": 0},
        {"domain": "text", "language": "Go", "supply_tokens": 9},
    ]
    shares = {"Python": 1, "Rust": 1, "Go": 2, "C": 0, "*": 1}
    data = data_config(name="test", seq_length=8, mixture={"code": 1}, shares=shares)
    line = missing_shares(data, rows)
    assert line is not None and "names Rust, Go, of which" in line and "is in Python" in line
    assert missing_shares(data_config(name="test", seq_length=8, mixture={"code": 1}), rows) is None
