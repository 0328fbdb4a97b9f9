"""How many files of code get the right language, where the label does not come from the extension.

    python benchmarks/labels.py FOLDER [--before CHECKOUT] [--most 150]

The label is the language that a package's own metadata names: the entry of the Debian archive, or
package.json. Of each package those files are taken that have the extensions which the language
uses, whoever else uses them too; `--most` of them, by the hash of their path. They are fetched into
FOLDER once. CHECKOUT is another commit's tree, labelled in the same run. Rates are those of
labelling alone, in one process: the best of three turns, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from data_pipeline.readers.fetch import fetch_debian, fetch_npm

REPOSITORY = Path(__file__).resolve().parents[1]
TURNS = 3
LABEL = """
import json, sys, time
try:
    from data_pipeline.langid.names import identify
except ImportError:  # where it was until the pipeline had rooms
    from data_pipeline.langid import identify
files = [(path, open(path, "rb").read(1 << 16)) for path in json.load(sys.stdin)]
identify("a.py", b"")
start = time.process_time()
found = [identify(path, head) for path, head in files]
seconds = time.process_time() - start
print(json.dumps([[f[0] if f else None for f in found], seconds]))
"""


class Packages(NamedTuple):
    """Packages in one language."""

    language: str
    extensions: str
    names: str
    evidence: str
    """What each package's metadata says, as a pattern."""
    registry: str = "debian"


PACKAGES = (
    Packages("Ada", "ads adb", "libahven11-dev libanet7-dev libdbusada8-dev", "Ada"),
    Packages("Asymptote", "asy", "asymptote", "Asymptote|inspired by MetaPost"),
    Packages("C", "h", "libglib2.0-dev libapr1-dev libcurl4-openssl-dev", r"devel::lang:c\b"),
    Packages("C#", "cs", "com.cysharp.unitask", r"Unity|C#", "npm"),
    Packages("C++", "h", "libpoco-dev libwxgtk3.2-dev wx3.2-headers", r"C\+\+"),
    Packages("CMake", "cmake", "extra-cmake-modules", "CMake"),
    Packages("Common Lisp", "lisp", "cl-ironclad cl-alexandria", "Common Lisp"),
    Packages("Coq", "v", "libcoq-mathcomp-ssreflect libcoq-stdpp libcoq-flocq", "Coq"),
    Packages("Crystal", "cr", "crystal-samples", "Crystal"),
    Packages("D", "d", "libgphobos-12-dev", r"\bD (?:standard|language)"),
    Packages("Emacs Lisp", "el", "elpa-helm-core elpa-magit-section", "Emacs"),
    Packages("Erlang", "erl hrl", "erlang-examples", "Erlang"),
    Packages("Forth", "fth fs", "pforth gforth-lib", "Forth"),
    Packages("GAP", "g gi gd tst", "gap-polycyclic gap-guava gap-crystcat gap-sonata", "GAP"),
    Packages("Go", "go", "golang-golang-x-text-dev", r"\bGo\b|golang"),
    Packages("Haskell", "hs", "libhugs-base-bundled", "lang:haskell"),
    Packages("Haxe", "hx", "haxe", "[Hh]axe"),
    Packages("IDL", "pro", "gdl-coyote gdl-mpfit", "IDL|for GDL"),
    Packages("LilyPond", "ly", "lilypond-data", "LilyPond"),
    Packages("Lua", "lua", "lua-penlight", "Lua"),
    Packages("M4", "m4", "autoconf-archive", "Autoconf"),
    Packages("MATLAB", "m tst", "octave-signal octave-image octave-struct", "Octave"),
    Packages("NSIS", "nsh nsi", "nsis-common", "Nullsoft Scriptable"),
    Packages("OCaml", "ml mli", "libextlib-ocaml-dev liblablgtk2-ocaml-dev", "OCaml"),
    Packages("Objective-C", "h", "libgnustep-gui-dev", "GNUstep|Objective-C"),
    Packages("PHP", "php inc", "php-symfony-console", "PHP"),
    Packages("POV-Ray SDL", "pov inc", "povray-examples", "[Pp]ersistence of vision"),
    Packages("Pascal", "pp pas inc", "fpc-source-3.2.2", "Pascal"),
    Packages("Perl", "pm pl t", "perl-modules-5.36 libmojolicious-perl", "Perl"),
    Packages("Pike", "pike pmod", "pike8.0-core", "[Pp]ike"),
    Packages("Prolog", "pl", "swi-prolog-core swi-prolog-test", "Prolog"),
    Packages("Puppet", "pp", "puppet-module-nova puppet-module-puppetlabs-postgresql", "Puppet"),
    Packages("Python", "py", "python3-networkx", "Python"),
    Packages("QMake", "pro pri", "qtdeclarative5-examples qtmultimedia5-examples", r"Qt 5"),
    Packages("R", "r", "r-cran-rcpp r-cran-rcppeigen", "GNU R"),
    Packages("Racket", "rkt", "racket-common", "Scheme family"),
    Packages("ReScript", "res", "@rescript/core", "[Rr]e[Ss]cript", "npm"),
    Packages("Ruby", "rb", "ruby-aws-sdk-s3 ruby-octokit", "Ruby"),
    Packages("Rust", "rs", "librust-regex-dev", "Rust"),
    Packages("Scheme", "scm", "slib", "Scheme"),
    Packages("Solidity", "sol", "@openzeppelin/contracts", "[Ss]olidity", "npm"),
    Packages("Standard ML", "sml sig ml", "libsmlnj-smlnj polyml-modules", "Standard ML"),
    Packages("SuperCollider", "sc", "sc3-plugins-language", "SuperCollider"),
    Packages("Tcl", "tcl", "tklib", "Tk|Tcl"),
    Packages("TypeScript", "ts", "rxjs typeorm", "[Tt]ype[Ss]cript", "npm"),
    Packages("VHDL", "vhdl", "ghdl-common", "VHDL"),
    Packages("Vala", "vapi", "valac-0.56-vapi", "Vala"),
    Packages("Verilog", "v vh", "yosys verilator", "Verilog"),
    Packages("Vim Script", "vim", "vim-airline", "[Vv]im"),
)


class Labelled(NamedTuple):
    """A file and its language."""

    path: str
    extension: str
    language: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="tree of another commit")
    parser.add_argument("--most", type=int, default=150, help="files of a package")
    arguments = parser.parse_args()
    about = archive([n for row in PACKAGES if row.registry == "debian" for n in row.names.split()])
    files = [f for row in PACKAGES for f in labelled(row, arguments.folder, arguments.most, about)]
    trees = [*([arguments.before] if arguments.before else []), REPOSITORY]
    turns = [[labels(tree, files) for tree in trees] for _ in range(TURNS)]
    found = [turns[0][i][0] for i in range(len(trees))]
    print(f"{len(files):,} files in {len({f.language for f in files})} languages\n")
    table(files, found)
    size = sum(min(Path(f.path).stat().st_size, 1 << 16) for f in files) / 1e6
    for i, tree in enumerate(trees):
        seconds = min(turn[i][1] for turn in turns)
        print(
            f"{tree.name}: {seconds / len(files) * 1e6:.0f} us per file, {size:.0f} MB at", end=" "
        )
        print(f"{size / seconds:,.0f} MB per CPU-second")


def labelled(row: Packages, folder: Path, most: int, entries: dict[str, str]) -> Iterator[Labelled]:
    """Yield the files of a language; ends the program if a package's metadata do not name it."""
    fetch = fetch_debian if row.registry == "debian" else fetch_npm
    for package in fetch(row.names.split(), folder):
        root = folder / package.folder
        about = entries[package.name] if row.registry == "debian" else manifest(root)
        if not re.search(row.evidence, about):
            sys.exit(f"{package.name} does not name {row.language}: {about}")
        found = []
        for path in root.rglob("*"):
            extension = path.name.lower().rpartition(".")[2] if "." in path.name else ""
            if extension in row.extensions.split() and path.is_file():
                data = path.read_bytes()
                if data.strip() and b"\0" not in data[:4096]:
                    key = xxhash.xxh3_64_intdigest(str(path.relative_to(root)))
                    found.append((key, Labelled(str(path), extension, row.language)))
        yield from (file for _, file in sorted(found)[:most])


def archive(names: list[str]) -> dict[str, str]:
    """Return what the Debian archive says of packages."""
    command = ["apt-cache", "show", "--no-all-versions", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entries = done.stdout.split("\n\n")
    return {m[1]: e for e in entries if (m := re.search(r"^Package: (\S+)", e, re.M))}


def manifest(root: Path) -> str:
    """Return what an npm package says of itself."""
    (file,) = root.glob("*/package.json")
    described = json.loads(file.read_text())
    keys = ("name", "description", "keywords", "devDependencies")
    return json.dumps({key: described.get(key) for key in keys})


def labels(tree: Path, files: list[Labelled]) -> tuple[list[str | None], float]:
    """Return what the code of a tree says of the files, and the CPU seconds that it took."""
    done = subprocess.run(
        [sys.executable, "-c", LABEL],
        input=json.dumps([f.path for f in files]),
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    found: Any = json.loads(done.stdout)
    return found[0], found[1]


def table(files: list[Labelled], found: list[list[str | None]]) -> None:
    """Print right labels by language, and the wrong ones of the last tree."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    extensions: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: dict[str, Counter[str]] = defaultdict(Counter)
    for number, file in enumerate(files):
        extensions[file.language][file.extension] += 1
        counts[file.language]["files"] += 1
        for i, tree in enumerate(found):
            counts[file.language][str(i)] += tree[number] == file.language
        last = found[-1][number]
        if last != file.language:
            wrong[file.language][last or "none"] += 1
    names = ["before", "after"][-len(found) :]
    print(f"| language | extensions | files | {' | '.join(names)} | wrong ones |")
    print("| --- | --- | --- |" + " --- |" * len(names) + " --- |")
    everything: Counter[str] = Counter()
    for language, count in counts.items():
        everything += count
        tell(language, " ".join(f".{e}" for e in extensions[language]), count, wrong[language])
    tell("all", "", everything, Counter())
    print()


def tell(language: str, extensions: str, count: Counter[str], wrong: Counter[str]) -> None:
    trees = [key for key in ("0", "1") if key in count or key == "0"]
    shares = " | ".join(f"{count[key] / count['files']:.1%}" for key in trees)
    errors = ", ".join(f"{name} {n}" for name, n in wrong.most_common(3))
    print(f"| {language} | {extensions} | {count['files']:,} | {shares} | {errors} |")


if __name__ == "__main__":
    main()
