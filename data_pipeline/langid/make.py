"""Make linguist.json, the table of languages, from a checkout of GitHub's linguist.

python -m data_pipeline.langid.make CHECKOUT: reads `languages.yml` and `heuristics.yml` and writes
linguist.json beside this file. The same checkout gives the same bytes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Rule = tuple[str, list[tuple[bool, str]]]
"""A language ("": none of the corpus), and patterns, each with whether it must be absent."""

RENAMED = {
    "Bison": "Yacc",
    "C2hs Haskell": "Haskell",
    "Cairo Zero": "Cairo",
    "Cuda": "CUDA",
    "Ecmarkup": "HTML",
    "Fortran Free Form": "Fortran",
    "Gentoo Ebuild": "Shell",
    "Gentoo Eclass": "Shell",
    "Gradle": "Groovy",
    "Lean 4": "Lean",
    "Less": "CSS",
    "Literate Agda": "Agda",
    "Literate CoffeeScript": "CoffeeScript",
    "Literate Haskell": "Haskell",
    "M4Sugar": "M4",
    "Motorola 68K Assembly": "Assembly",
    "OpenRC runscript": "Shell",
    "PLSQL": "SQL",
    "PLpgSQL": "SQL",
    "PostCSS": "CSS",
    "Rocq Prover": "Coq",
    "SCSS": "CSS",
    "SQLPL": "SQL",
    "Sass": "CSS",
    "SystemVerilog": "Verilog",
    "TSQL": "SQL",
    "TSX": "TypeScript",
    "Unix Assembly": "Assembly",
    "Vim script": "Vim Script",
    "XSLT": "XML",
}
"""Dialects under the language that they count as here, and names that are spelt otherwise."""
LEFT_OUT = {
    # documents and drawings, not programs
    *("BBCode", "BibTeX", "Jupyter Notebook", "Pic", "PostScript", "RUNOFF", "Rich Text Format"),
    *("Roff", "Roff Manpage", "TeX", "Cooklang"),
    # machine output, or data that a program saves
    *("G-code", "JetBrains MPS", "LabVIEW", "Linear Programming", "Max", "Python console"),
    *("Mathematical Programming System", "Julia REPL", "Elvish Transcript", "ShellSession"),
}
"""Languages of the types `programming` and `markup` that are not code of the corpus."""
TAKEN = {
    *("GraphQL", "Gradle", "Markdown", "Protocol Buffer", "RMarkdown", "SPARQL", "SQL", "TOML"),
    *("XML", "YAML"),
}
"""Languages of other types that are."""
DATA = {"XML", "YAML", "TOML"}
"""Of these, the ones of which linguist's many extensions are not taken."""
AMBIGUOUS_FILES = {
    *("9fs", "ack", "buck", "build", "cask", "deps", "eask", "emakefile", "man", "owh", "project"),
    *("root", "singularity", "starfield", "viper", "workspace"),
}
"""Names of files in capitals that are others' words in small letters; case is ignored here."""
PROSE = {"BBCode", "BibTeX", "Pic", "RUNOFF", "Rich Text Format", "Roff", "Roff Manpage", "TeX"}
"""Formats of prose besides those of the type `prose`."""
NOT_TAKEN = {
    # most files with these names are others': programs of DOS, point clouds, SPSS, dialects that
    # count as one language here
    *("com", "las", "msg", "os", "self", "spc", "sps", "tps", "yaml", "yml"),
}
"""Extensions that are left out."""
TAMED = (
    (r"^[^#]*:-", r"^[^#\n]*:-"),
    (r"^[^#]+:-", r"^[^#\n]+:-"),
    (r"^[^\[#]+:-", r"^[^\[#\n]+:-"),
    (r"import\s+[\w\s,.:]*;", r"import\s+[\w ,.:]*;"),
    (r"\{[^}]*\}", r"\{[^}]{0,300}\}"),
    (r"[A-Z][\s\w.]+;", r"[A-Z][\w .]+;"),
    (r'[^"m]*mov', r'[^"m\n]*mov'),
    (r"(\S+\s)+", r"(\S+\s){1,20}"),
    (r"[\w\.\/\*\s]*\s*\{", r"[\w./* ]*\{"),
    (r"^[\w\s\/\\.]+\w+\.\w+\s*:\s+[\w\s\/\\.]+\w+", r"^[\w \/\\.]+\w+\.\w+\s*:\s+[\w \/\\.]+\w+"),
    (r"\([^)]*\)", r"\([^)\n]*\)"),
    (r"\s[^.]*\.", r"\s[^.\n]*\."),
)
"""Parts of patterns that cross lines, and parts that do not: no file may take quadratic time."""
_TYPES = {"programming", "markup"}


def main() -> None:
    """Write the table beside this file."""
    checkout = Path(sys.argv[1])
    library = checkout / "lib/linguist"
    languages = yaml.safe_load((library / "languages.yml").read_text(encoding="utf-8"))
    heuristics = yaml.safe_load((library / "heuristics.yml").read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    named = names(languages)
    table = {
        "source": "https://github.com/github-linguist/linguist, languages.yml and heuristics.yml",
        "version": (library / "VERSION").read_text().strip(),
        "commit": commit.stdout.strip(),
        "licence": (checkout / "LICENSE").read_text(encoding="utf-8"),
        **named,
        "rules": rules(heuristics, languages, named["extensions"]),
    }
    path = Path(__file__).with_name("linguist.json")
    path.write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def names(languages: dict[str, Any]) -> dict[str, Any]:
    """Return what tells languages: extensions, names of files, interpreters, aliases."""
    extensions: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    interpreters: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    code: set[str] = set()
    prose: set[str] = set()
    for name, about in languages.items():
        usual = usual_name(name, languages)
        if usual:
            code.add(usual)
        elif _is_prose(name, about):
            prose.add(name)
        if usual or name in prose:
            for alias in (name.lower(), *about.get("aliases", ())):
                aliases.setdefault(alias, usual or name)
        for table, key in (
            (extensions, "extensions"),
            (files, "filenames"),
            (interpreters, "interpreters"),
        ):
            for entry in about.get(key, ()):
                language = "" if key == "extensions" and name in DATA else usual
                _add(table, entry.lower(), language)
    return {
        "code": sorted(code),
        "prose": sorted(prose),
        # only the last extension of a name is looked at
        "extensions": {
            e[1:]: v
            for e, v in sorted(extensions.items())
            if e.rfind(".") == 0 and any(v) and e[1:] not in NOT_TAKEN
        },
        "files": {
            k: v for k, v in _only(files).items() if k not in AMBIGUOUS_FILES and k[0] not in "._"
        },
        "interpreters": _only(interpreters),
        "aliases": dict(sorted(aliases.items())),
    }


def usual_name(name: str, languages: dict[str, Any]) -> str:
    """Return the name in the corpus of a language of linguist's; "" for one that is not code."""
    kind = languages[name]["type"]
    if name in TAKEN or (kind in _TYPES and name not in LEFT_OUT):
        return RENAMED.get(name, name)
    return ""


def _is_prose(name: str, about: dict[str, Any]) -> bool:
    return about["type"] == "prose" or name in PROSE


def _only(table: dict[str, list[str]]) -> dict[str, str]:
    """Return what belongs to one language of the corpus and to no other."""
    return {key: found[0] for key, found in sorted(table.items()) if len(found) == 1 and found[0]}


def _add(table: dict[str, list[str]], key: str, language: str) -> None:
    if language not in table.setdefault(key, []):
        table[key].append(language)


def rules(
    heuristics: dict[str, Any], languages: dict[str, Any], extensions: dict[str, list[str]]
) -> dict[str, list[Rule]]:
    """Return the rules of every shared extension, in their order, with patterns of Python."""
    found: dict[str, list[Rule]] = {}
    for entry in heuristics["disambiguations"]:
        converted: list[Rule] = []
        for rule in entry["rules"]:
            of = rule["language"]
            # a rule for two languages decides nothing
            language = usual_name(of, languages) if isinstance(of, str) else ""
            converted.append((language, _patterns(rule, heuristics["named_patterns"])))
        named = {language for language, _ in converted}
        for extension in (e.lower().removeprefix(".") for e in entry["extensions"]):
            sharing = named.union(extensions.get(extension, ()))
            if len(sharing) > 1 and not named <= {"", *DATA} and extension not in NOT_TAKEN:
                found[extension] = converted
    return dict(sorted(found.items()))


def _patterns(rule: dict[str, Any], named: dict[str, Any]) -> list[tuple[bool, str]]:
    if "and" in rule:
        return [pattern for part in rule["and"] for pattern in _patterns(part, named)]
    found = []
    if "named_pattern" in rule:
        found.append((False, to_python(named[rule["named_pattern"]])))
    if "pattern" in rule:
        found.append((False, to_python(rule["pattern"])))
    if "negative_pattern" in rule:
        found.append((True, to_python(rule["negative_pattern"])))
    return found


def to_python(patterns: str | list[str]) -> str:
    """Return a pattern of Ruby, or several as one, for `re` on bytes with the flag MULTILINE."""
    if isinstance(patterns, list):
        return "|".join(f"(?:{to_python(pattern)})" for pattern in patterns)
    pattern = patterns.replace("(?-m)", "").replace("\\z", "\\Z").replace("\\h", "[0-9a-fA-F]")
    pattern = pattern.replace("[\\s&&[^\\r\\n]]", "[ \\t]").replace("(?<ipv4>", "(?P<ipv4>")
    for part, tamed in TAMED:
        pattern = pattern.replace(part, tamed)
    # without an anchor a blank more or less is no matter, and seeking it takes quadratic time
    pattern = re.sub(r"^\\s\*(?=\()", "", pattern)
    flags = re.search(r"\(\?([imx]+)\)", pattern)
    if flags:
        # what Ruby calls m is Python's s; no pattern with it has a dot that should cross lines
        letters = flags[1].replace("m", "")
        rest = pattern[: flags.start()] + pattern[flags.end() :]
        pattern = f"(?{letters}:{rest})" if letters else rest
    return pattern


if __name__ == "__main__":
    main()
