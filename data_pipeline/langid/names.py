"""Language and domain of a file by its name, its content where names are shared, or its shebang.

The domain follows from the language alone. Markdown and HTML count as code wherever they lie, since
the published shares of programming languages count them there; prose is .txt, .rst, .tex, .org,
.pod, other markup for documentation, and files such as README and NEWS.Debian. Names that the
tables here lack are those of linguist's languages (`table.py`); extensions that several languages
share are decided by what is in the file (`content.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from data_pipeline.langid.content import SHARED, decide, default_of
from data_pipeline.langid.spoken import is_spoken, is_undecided
from data_pipeline.langid.table import LINGUIST

UNKNOWN = "unknown"
LABELS_VERSION = 3
"""Of what this room says of a file; it is part of every corpus' fingerprint."""
HEAD_BYTES = 50 << 10
"""Bytes from the start of a file that rules look at, linguist's number; licences and manuals fill
the start of many."""

_PROSE = {
    "Text": "txt text",
    "reStructuredText": "rst rest",
    "TeX": "tex",
    "Org": "org",
    "AsciiDoc": "adoc asciidoc",
    "Pod": "pod",
}
_CODE = {
    "Ada": "adb ads",
    "Assembly": "s asm",
    "Batchfile": "bat cmd",
    "C": "c h",
    "C#": "cs",
    "C++": "cpp cc cxx hpp hh hxx inl ipp tpp tcc",
    "CMake": "cmake",
    "CSS": "css scss sass less",
    "Clojure": "clj cljs cljc",
    "CoffeeScript": "coffee",
    "Common Lisp": "lisp lsp",
    "Crystal": "cr",
    "CUDA": "cu cuh",
    "Cython": "pyx pxd pxi",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Emacs Lisp": "el",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f90 f95 f03 f08 for",
    "GLSL": "glsl vert frag comp",
    "Go": "go",
    "Groovy": "groovy gradle",
    "HTML": "html htm xhtml",
    "Haskell": "hs lhs",
    "Java": "java",
    "JavaScript": "js mjs cjs jsx",
    "Jinja": "jinja jinja2 j2",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lua": "lua",
    "M4": "m4",
    "Makefile": "mk mak",
    "Markdown": "md markdown mkd",
    "Nim": "nim nims",
    "OCaml": "ml mli",
    "Objective-C": "",
    "Objective-C++": "mm",
    "PHP": "php phtml",
    "Pascal": "pas dpr",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffer": "proto",
    "Python": "py pyi pyw",
    "R": "r",
    "Ruby": "rb rake",
    "Rust": "rs",
    "SQL": "sql",
    "Scala": "scala sc",
    "Scheme": "scm ss",
    "Shell": "sh bash zsh ksh",
    "Solidity": "sol",
    "Starlark": "bzl star",
    "Swift": "swift",
    "Tcl": "tcl",
    "TOML": "toml",
    "TypeScript": "ts tsx mts cts",
    "VHDL": "vhd vhdl",
    "Verilog": "sv svh",
    "Vim Script": "vim",
    "Vue": "vue",
    "XML": "xml xsd xsl xslt",
    "YAML": "yaml yml",
    "Zig": "zig",
}
_BY_EXTENSION = {
    ext: name for table in (_PROSE, _CODE) for name, exts in table.items() for ext in exts.split()
}
_BY_NAME = {
    "cmakelists.txt": "CMake",
    "dockerfile": "Dockerfile",
    "makefile": "Makefile",
    "gnumakefile": "Makefile",
    "rakefile": "Ruby",
    "gemfile": "Ruby",
    "build.bazel": "Starlark",
    "copying": "Text",
    "copyright": "Text",
    "license": "Text",
    "licence": "Text",
    "notice": "Text",
    "readme": "Text",
    "news": "Text",
    "authors": "Text",
    "changelog": "Text",
}
_MORE_PROSE = {
    "RDoc": "rdoc",
    "Textile": "textile",
    "Texinfo": "texi texinfo txi",
    "Wikitext": "mediawiki wikitext",
    "Creole": "creole",
}
_PROSE_BY_EXTENSION = {ext: name for name, exts in _MORE_PROSE.items() for ext in exts.split()}
_DOCUMENTS = {
    *("readme", "news", "changelog", "changes", "history", "authors", "credits", "thanks", "todo"),
    *("install", "faq", "copying", "copyright", "license", "licence", "notice", "contributing"),
}
_OF = {
    *(
        "",
        "debian",
        "source",
        "win",
        "win32",
        "windows",
        "dos",
        "unix",
        "linux",
        "mac",
        "macos",
        "osx",
    ),
    *("vms", "os2", "git", "svn", "cvs", "1st", "first"),
}
"""What such a name may end in besides a spoken language: README.Debian, README.ja."""
_BY_INTERPRETER = {
    "python": "Python",
    "sh": "Shell",
    "bash": "Shell",
    "dash": "Shell",
    "zsh": "Shell",
    "perl": "Perl",
    "ruby": "Ruby",
    "node": "JavaScript",
    "php": "PHP",
    "lua": "Lua",
    "tclsh": "Tcl",
    "awk": "Awk",
}
_ALIASES = {
    **LINGUIST.aliases,
    **{name.lower(): name for name in (*_PROSE, *_CODE)},
    "bash": "Shell",
    "c-sharp": "C#",
    "coq": "Coq",
    "cpp": "C++",
    "csharp": "C#",
    "fortran free form": "Fortran",
    "golang": "Go",
    "javascript react": "JavaScript",
    "js": "JavaScript",
    "jsx": "JavaScript",
    "f77": "Fortran",
    "f90": "Fortran",
    "latex": "TeX",
    "man": "Roff Manpage",
    "objc": "Objective-C",
    "objectivec": "Objective-C",
    "py": "Python",
    "rs": "Rust",
    "rst": "reStructuredText",
    "shellscript": "Shell",
    "troff": "Roff",
    "ts": "TypeScript",
    "tsx": "TypeScript",
    "typescript react": "TypeScript",
    "vb": "Visual Basic .NET",
    "viml": "Vim Script",
}
_KNOWN = {*_PROSE, *_CODE, *_BY_NAME.values(), *LINGUIST.code, *LINGUIST.prose}
# several languages have these, and none of them most
_DECIDED = {"d", "m", "pp", "pro", "v"}
_SHEBANG = re.compile(rb"#!\s*\S*?(?:env\s+(?:-\S+\s+)*)?([A-Za-z]+)[\d.]*(?:\s|$)")
_MIME = re.compile(r"(?:text|application)/(?:x-|vnd\.)?")


class Verdict(NamedTuple):
    """The language of a file."""

    language: str
    """`unknown` where several languages share the extension, and nothing in the file decides."""
    is_sure: bool
    """The name belongs to one language, or something in the file tells which of several it is."""


def language_of_name(name: str) -> str | None:
    """Return the language that a name tells, or None.

    Of a name that languages share, it is the one that has it where the content does not decide.
    """
    # case is ignored: .C and .H are rare, and file systems that fold case lose them
    # strings, not paths: this is asked for every installed file
    return _language_of(*_parts(name))


def _language_of(base: str, extension: str) -> str | None:
    named = _BY_NAME.get(base) or _BY_EXTENSION.get(extension)
    if named:
        return named
    if base in LINGUIST.files:
        return LINGUIST.files[base]
    candidates = LINGUIST.extensions.get(extension, ())
    if extension in SHARED or len(candidates) == 1:
        return next((language for language in candidates if language), None)
    if extension in _PROSE_BY_EXTENSION:
        return _PROSE_BY_EXTENSION[extension]
    is_document = base.partition(".")[0] in _DOCUMENTS and not candidates
    return "Text" if is_document and (extension in _OF or is_spoken(extension)) else None


def common_language_of_name(name: str) -> str | None:
    """Return the language that a name tells if it is one of the tables of this module, or None.

    It keeps what is taken of this machine and of packages' documents as it was before there were
    linguist's names.
    """
    base, extension = _parts(name)
    is_common = base in _BY_NAME or extension in _BY_EXTENSION or extension in _DECIDED
    return language_of_name(name) if is_common else None


def judge(name: str, head: bytes) -> Verdict | None:
    """Return the language of a file; None if neither its name nor its first bytes tell.

    Args:
        name: File name, with or without folders.
        head: The first bytes of the file; HEAD_BYTES are looked at.
    """
    base, extension = _parts(name)
    if extension in SHARED and base not in _BY_NAME and base not in LINGUIST.files:
        return _of_shared(extension, head[:HEAD_BYTES])
    language = _language_of(base, extension)
    if language is None and not extension:
        match = _SHEBANG.match(head, 0, HEAD_BYTES)
        language = _of_interpreter(match) if match else None
    return None if language is None else Verdict(language, True)


def identify(name: str, head: bytes) -> tuple[str, str] | None:
    """Return (language, domain) of a file, or None: see `judge`."""
    base, extension = _parts(name)
    if base not in _BY_NAME and base not in LINGUIST.files and extension in _TOLD:
        return _TOLD[extension]
    verdict = judge(name, head)
    return None if verdict is None else (verdict.language, domain_of(verdict.language))


def _parts(name: str) -> tuple[str, str]:
    """Return the last part of a path and its extension, in small letters."""
    lower = name.rpartition("/")[2].lower()
    # Sphinx keeps the sources of its pages as .rst.txt and .md.txt
    if lower.endswith((".rst.txt", ".md.txt")):
        lower = lower.removesuffix(".txt")
    return lower, lower.rpartition(".")[2] if "." in lower else ""


def _of_interpreter(shebang: re.Match[bytes]) -> str | None:
    interpreter = shebang[1].decode().lower()
    return _BY_INTERPRETER.get(interpreter) or LINGUIST.interpreters.get(interpreter)


def _of_shared(extension: str, head: bytes) -> Verdict | None:
    match = _SHEBANG.match(head)
    if match:
        language = _of_interpreter(match)
        if language and may_be("." + extension, language):
            return Verdict(language, is_sure=True)
    decided = decide(extension, head)
    if decided is not None:
        return Verdict(decided, is_sure=True) if decided else None
    default = _BY_EXTENSION.get(extension) or default_of(extension)
    return Verdict(default or UNKNOWN, is_sure=False)


def may_be(name: str, language: str) -> bool:
    """Tell whether a file of this name may be in a language."""
    extension = _parts(name)[1]
    return language == _BY_EXTENSION.get(extension) or language in LINGUIST.extensions.get(
        extension, ()
    )


def code_languages() -> list[str]:
    """Return the languages of code that names or first lines tell, by name."""
    return sorted(name for name in _KNOWN if domain_of(name) == "code")


def is_known(language: str) -> bool:
    """Tell whether a language stands in the tables of this module."""
    return language in _KNOWN


def domain_of(language: str) -> str:
    """Return the domain of the corpus that a language belongs to."""
    return "text" if language in _PROSE or language in LINGUIST.prose else "code"


def members_of(domain: str) -> str:
    """Say which names make a file one of a domain, or "" for a domain that names do not tell."""
    if domain not in ("text", "code"):
        return ""
    prose = (*_PROSE.values(), *_MORE_PROSE.values())
    extensions = ", ".join(f".{e}" for exts in prose for e in exts.split())
    text = f"{extensions} and README, LICENSE and the like"
    if domain == "text":
        return f"of files, {text} are text; Markdown and HTML count as code"
    return f"of files, those in a programming language are code, and Markdown and HTML; not {text}"


@lru_cache(4096)
def canonical(language: str) -> str:
    """Return the usual spelling of a language that a data set names.

    Extensions and MIME types are names as well. What says that the text is in no programming
    language (`plain text`, `none`, `en`, `German`) is `Text`; what says that nobody knows is
    `unknown`; a name of no known language stays as it is.
    """
    lower = _MIME.sub("", " ".join(language.lower().split()), count=1)
    if is_spoken(lower):
        return "Text"
    if is_undecided(lower):
        return UNKNOWN
    for spelling in (lower, lower.replace(" ", "-"), lower.replace("-", " "), lower.lstrip(".")):
        if spelling in _ALIASES:
            return _ALIASES[spelling]
    extension = lower.lstrip(".")
    if extension in _BY_EXTENSION:
        return _BY_EXTENSION[extension]
    candidates = LINGUIST.extensions.get(extension, ())
    return candidates[0] if len(candidates) == 1 else language.strip()


_TOLD = {
    extension: (language, domain_of(language))
    for extension in (*_BY_EXTENSION, *LINGUIST.extensions)
    if extension not in SHARED and (language := _language_of("", extension))
}
"""What `identify` says of an extension that tells the language by itself, as most do."""
