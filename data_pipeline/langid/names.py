"""Language and domain of a file by its name, else by its shebang.

The domain follows from the language alone. Markdown and HTML count as code wherever they lie, since
the published shares of programming languages count them there; prose is .txt, .rst, .tex, .org,
.pod and files such as README and LICENSE that have no extension.
"""

from __future__ import annotations

import re

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
    "D": "d",
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
    "MATLAB": "m",
    "Makefile": "mk mak",
    "Markdown": "md markdown mkd",
    "Nim": "nim nims",
    "OCaml": "ml mli",
    "Objective-C": "",
    "Objective-C++": "mm",
    "PHP": "php phtml",
    "Pascal": "pas pp dpr",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Prolog": "pro",
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
    "Verilog": "v sv svh",
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
_KNOWN = {*_PROSE, *_CODE, *_BY_NAME.values(), *_BY_INTERPRETER.values()}
_ALIASES = {name.lower(): name for name in _CODE} | {
    "bash": "Shell",
    "c-sharp": "C#",
    "cpp": "C++",
    "csharp": "C#",
    "fortran free form": "Fortran",
    "golang": "Go",
    "javascript react": "JavaScript",
    "js": "JavaScript",
    "jsx": "JavaScript",
    "objc": "Objective-C",
    "objectivec": "Objective-C",
    "py": "Python",
    "rs": "Rust",
    "shellscript": "Shell",
    "ts": "TypeScript",
    "tsx": "TypeScript",
    "typescript react": "TypeScript",
    "viml": "Vim Script",
}
# names that several languages share: the rarer one, and a sign of it in the file
_BY_CONTENT = {
    ".h": ("C++", rb"^\s*(?:class|namespace|template\s*<|using\s|public:|private:)|std::"),
    ".m": ("Objective-C", rb"^\s*(?:#\s*import\b|@(?:interface|implementation|protocol|import)\b)"),
    ".pl": ("Prolog", rb"^\s*:-\s*\w|^[a-z]\w*\(.*\)\s*:-"),
    ".ts": ("XML", rb"\A\s*<(?:\?xml|!DOCTYPE)"),
    ".fs": ("GLSL", rb"^\s*(?:#version|precision\s|uniform\s|varying\s|void\s+main\s*\()"),
}
_BY_CONTENT_RE = {ext: (name, re.compile(sign, re.M)) for ext, (name, sign) in _BY_CONTENT.items()}
_SHEBANG = re.compile(rb"#!\s*\S*?(?:env\s+(?:-\S+\s+)*)?([A-Za-z]+)[\d.]*(?:\s|$)")


def language_of_name(name: str) -> str | None:
    """Return the language that a name tells, or None; `.h` is `C` until its content is seen."""
    # case is ignored: .C and .H are rare, and file systems that fold case lose them
    # strings, not paths: this is asked for every installed file
    # Sphinx keeps the sources of its pages as .rst.txt and .md.txt
    lower = name.rpartition("/")[2].lower()
    if lower.endswith((".rst.txt", ".md.txt")):
        lower = lower.removesuffix(".txt")
    return _BY_NAME.get(lower) or _BY_EXTENSION.get(
        lower.rpartition(".")[2] if "." in lower else ""
    )


def identify(name: str, head: bytes) -> tuple[str, str] | None:
    """Return (language, domain) of a file, or None if neither its name nor its first bytes tell.

    Args:
        name: File name, with or without folders.
        head: The first bytes of the file; a few kilobytes are enough.
    """
    language = language_of_name(name)
    if language is None and "." not in name.rpartition("/")[2]:
        match = _SHEBANG.match(head)
        language = _BY_INTERPRETER.get(match[1].decode().lower()) if match else None
    if language is None:
        return None
    _, dot, extension = name.lower().rpartition(".")
    rarer = _BY_CONTENT_RE.get(dot + extension)
    if rarer and rarer[1].search(head):
        language = rarer[0]
    return language, domain_of(language)


def code_languages() -> list[str]:
    """Return the languages of code that names or first lines tell, by name."""
    return sorted(name for name in _KNOWN if domain_of(name) == "code")


def is_known(language: str) -> bool:
    """Tell whether a language stands in the tables of this module."""
    return language in _KNOWN


def domain_of(language: str) -> str:
    """Return the domain of the corpus that a language belongs to."""
    return "text" if language in _PROSE else "code"


def members_of(domain: str) -> str:
    """Say which names make a file one of a domain, or "" for a domain that names do not tell."""
    if domain not in ("text", "code"):
        return ""
    extensions = ", ".join(f".{e}" for exts in _PROSE.values() for e in exts.split())
    text = f"{extensions} and README, LICENSE and the like without an extension"
    if domain == "text":
        return f"of files, {text} are text; Markdown and HTML count as code"
    return f"of files, those in a programming language are code, and Markdown and HTML; not {text}"


def canonical(language: str) -> str:
    """Return the usual spelling of a language that a data set names, or the name as it is."""
    return _ALIASES.get(language.strip().lower(), language.strip())
