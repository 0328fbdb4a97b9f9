"""The section `data.build.filters`: the thresholds of cleaning, each with unit and source."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, Changes

_NEW = Changes("corpus", since="2026-11-29")

_PERMISSIVE = (
    "0BSD AFL-3.0 Apache-2.0 Artistic-2.0 BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause "
    "BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 CC-BY-3.0 CC-BY-4.0 "
    "CC-PDDC CC0-1.0 ECL-2.0 HPND ICU ISC MIT MIT-0 MulanPSL-2.0 NCSA OLDAP-2.8 PostgreSQL "
    "PSF-2.0 Python-2.0 Ruby TCL Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 Vim W3C WTFPL X11 "
    "Zlib ZPL-2.1"
)
PERMISSIVE_LICENCES = tuple(_PERMISSIVE.split())
"""SPDX ids that ask for no more than attribution."""


@dataclass(frozen=True, config=STRICT)
class FilterConfig:
    """What cleaning drops and repairs. null switches a threshold's rule off.

    Sources: Gopher is Rae et al. 2021, appendix A1.1 and table A1; C4 is Raffel et al. 2020,
    section 2.2; Codex is Chen et al. 2021, section 3.1; StarCoder is Li et al. 2023, section 3;
    StarCoder2 (The Stack v2) is Lozhkov et al. 2024, section 3.
    """

    enabled: bool = True
    """Clean at all; false hands every document on as it is."""

    # prose: quality

    min_words: int | None = 50
    """Words (between blanks) of a prose document. Gopher."""
    max_words: int | None = None
    """Words of a prose document. Gopher drops pages above 100,000, where books and manuals lie."""
    min_mean_word_length: float | None = 3.0
    """Letters of a word, over the words that have one. Gopher, who count every character."""
    max_mean_word_length: float | None = 10.0
    """Letters of a word, over the words that have one. Gopher, who count every character."""
    max_symbols_per_word: float | None = 0.1
    """Hashes or ellipses, a run of hashes being one, over words. Gopher, who count every hash."""
    max_bullet_lines: float | None = 0.9
    """Share of lines that start with a bullet. Gopher."""
    max_ellipsis_lines: float | None = 0.3
    """Share of lines that end with an ellipsis. Gopher."""
    min_alphabetic_words: float | None = 0.6
    """Share of words that have a letter, over the words that have a letter or a digit. Gopher takes
    0.8 of all words; references and tables in manuals lie between."""
    min_stop_words: int | None = 2
    """Different stop words of one language. Gopher, for English; skipped for other scripts."""
    max_spaceless: float | None = 0.3
    """Share of characters in scripts without spaces (Chinese, Japanese, Thai, ...) and in Korean
    above which the rules that need words are skipped. Ours."""

    # prose: repetition

    min_repeat_chars: int = 20
    """Characters from which a line or paragraph can count as repeated: headings such as SYNOPSIS,
    rulers and brackets recur in every manual. Ours."""
    max_duplicate_lines: float | None = 0.3
    """Share of lines that occurred before in the document. Gopher."""
    max_duplicate_line_chars: float | None = 0.3
    """Share of characters in such lines. Gopher takes 0.2; protocol specifications have 0.3."""
    max_duplicate_paragraphs: float | None = 0.3
    """Share of paragraphs (between empty lines) that occurred before. Gopher."""
    max_duplicate_paragraph_chars: float | None = 0.2
    """Share of characters in such paragraphs. Gopher."""
    max_top_ngram: dict[int, float] | None = field(
        default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16}
    )
    """Share of characters in the most frequent n-gram of words, by n. Gopher."""
    max_duplicate_ngrams: dict[int, float] | None = field(
        default_factory=lambda: {5: 0.30, 6: 0.28, 7: 0.26, 8: 0.24, 9: 0.22, 10: 0.20}
    )
    """Share of characters in n-grams of words that occurred before, by n. Gopher takes half of
    this; reference manuals have up to 0.27 in 5-grams, degenerate pages from 0.35."""

    # prose: remains of web pages, and what is none

    drop_other_formats: Annotated[bool, _NEW] = True
    """Drop prose that is something else by its first characters: PostScript, PDF, RTF,
    uuencoded files, tables of fonts, XML, HTML, JSON. Ours."""

    drop_lorem_ipsum: bool = True
    """Drop prose with the words lorem ipsum. C4."""
    drop_curly_brackets: bool = False
    """Drop prose with a curly bracket. C4; off, since documentation of programs has them."""
    remove_javascript_notices: bool = True
    """Remove lines that ask for JavaScript. C4 removes every line with that word."""
    require_terminal_punctuation: bool = False
    """Remove lines that do not end in . ! ? or a quote. C4; off, since it takes headings, lists and
    examples out of documentation."""

    # code

    max_line_length: int | None = 1000
    """Characters of the longest line. Codex, StarCoder."""
    max_mean_line_length: float | None = 100.0
    """Mean characters of a line, comments and indentation apart. Codex, StarCoder, with both."""
    max_markup_line_length: int | None = 100_000
    """Characters of the longest line in markup, where a line may be a paragraph and the two rules
    above do not hold. StarCoder2."""
    min_alphanumeric: float | None = 0.25
    """Share of letters and digits among the characters, indentation apart. StarCoder, with it."""
    max_encoded_run: int | None = 1024
    """Characters of the longest base64 string. StarCoder2."""
    max_encoded: float | None = 0.5
    """Share of characters in base64 strings and in tables of numbers. StarCoder2, for base64, hex
    and Unicode escapes; tables of decimal numbers are ours."""
    drop_generated: bool = True
    """Drop files whose head says that a program wrote them. StarCoder2; Codex."""
    linguist_generated: bool | Literal["auto"] = True
    """Drop files that GitHub's linguist calls generated, by name and content; needs enry (auto:
    where it is installed). The Stack v2."""
    drop_minified: bool = True
    """Drop minified JavaScript and CSS, by name or by hardly any blanks. Linguist."""
    min_blanks: float | None = 0.06
    """Share of blanks below which JavaScript and CSS of over 1,000 characters count as minified.
    Ours: other files have 0.1 and more."""
    drop_vendored: bool = True
    """Drop files below folders for the code of others. After linguist, without the names that one's
    own code has too (cache, deps, fixtures, external)."""
    linguist_vendored: bool = False
    """Drop everything that linguist calls vendored; needs enry. The Stack v2."""
    path_roots: list[str] = field(default_factory=list)
    """Folders of the sources: paths count from there, so that nobody's `/data/vendor/` is taken for
    a part of a project. Other absolute paths are judged by few names only."""
    drop_lock_files: bool = True
    """Drop the lock files of package managers, by name. StarCoder2, by linguist."""
    max_data_lines: int | None = 512
    """Lines of JSON, YAML, XML, CSV and the like. StarCoder2, for JSON and YAML."""
    min_data_alphabetic: float | None = 0.5
    """Share of letters among their characters other than blanks. StarCoder, of all characters."""
    min_visible_text: float | None = 0.2
    """Share of visible text in HTML; half of it is enough for prose. StarCoder, for all."""
    min_visible_chars: int | None = 100
    """Characters of visible text in HTML. StarCoder."""
    min_prose_chars: Annotated[int | None, _NEW] = 300
    """Visible characters in runs of five words or more from which markup counts as prose: a manual
    that Texinfo or LaTeX2HTML set is not generated. null: no markup does. Ours."""
    min_prose: Annotated[float | None, _NEW] = 0.35
    """Share of such characters in the visible text: listings and indexes have less. Ours."""

    # both: what must not be learned

    scrub_emails: bool = True
    """Put <EMAIL> for e-mail addresses, unless they are examples or nobody's. StarCoder."""
    scrub_ips: bool = True
    """Put <IP_ADDRESS> for public IPv4 and IPv6 addresses. StarCoder."""
    scrub_secrets: bool = True
    """Put <KEY> for API keys, tokens and private keys of known forms. StarCoder."""

    # licences

    licence_policy: Literal["any", "allow_list"] = "any"
    """any: licences are not looked at; allow_list: keep what is under an allowed one. StarCoder."""
    allowed_licences: list[str] = field(default_factory=lambda: list(PERMISSIVE_LICENCES))
    """SPDX ids, case ignored."""
    allowed_by_source: dict[str, list[str]] = field(default_factory=dict)
    """The same for single sources by name, instead of `allowed_licences`."""
    source_licences: dict[str, str] = field(default_factory=dict)
    """SPDX expression of a source by name, for documents that tell nothing themselves."""
