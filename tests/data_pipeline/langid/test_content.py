"""Extensions that several languages share: what is in a file decides, in any file and in time."""

from __future__ import annotations

import time

import pytest

from data_pipeline.langid.content import SHARED, decide
from data_pipeline.langid.names import (
    HEAD_BYTES,
    common_language_of_name,
    domain_of,
    identify,
    judge,
    language_of_name,
)
from data_pipeline.langid.table import LINGUIST

FILES = [
    # Coq, Verilog and V
    ("Init.v", "Lemma a : forall n, n = n.\nProof. auto. Qed.\n", "Coq"),
    ("All.v", "(* all of it *)\nRequire Export A.B.\n", "Coq"),
    ("cpu.v", "`timescale 1ns/1ps\nmodule cpu(input clk);\nendmodule\n", "Verilog"),
    ("cpu.v", "module cpu\n  (clk);\ninput clk;\nendmodule\n", "Verilog"),
    ("a.v", "module main\n\nfn main() {\n\tprintln('a')\n}\n", "V"),
    # Puppet and Pascal
    ("init.pp", "# @summary a\nclass apache (\n  Boolean $x = true,\n) {\n}\n", "Puppet"),
    ("ip.pp", "type Stdlib::IP = Variant[A, B]\n", "Puppet"),
    ("site.pp", "node default {\n  include ntp\n}\n", "Puppet"),
    ("crt.pp", "{$mode objfpc}\nunit Crt;\ninterface\nuses Dos;\nend.\n", "Pascal"),
    # rules of make that compilers write, D and DTrace
    ("main.d", "build/main.o: src/main.c \\\n  include/a.h\n", "Makefile"),
    ("lib.d", "/t/lib.rlib: src/lib.rs src/a.rs\n\nsrc/lib.rs:\n", "Makefile"),
    ("app.d", "/** Docs. */\r\nmodule app.main;\r\nimport std.stdio : writeln;\r\n", "D"),
    ("a.d", "#!/usr/sbin/dtrace -s\nsyscall::open:entry\n{ trace(1); }\n", "DTrace"),
    # Qt's projects, IDL and Prolog
    ("app.pro", "QT += core\nTARGET = app\n", "QMake"),
    ("sub.pro", "TEMPLATE = subdirs\nSUBDIRS = a b\n", "QMake"),
    ("fit.pro", ";+\n; NAME: fit\n;-\npro fit, x, y\nend\n", "IDL"),
    ("a.pro", "likes(mary, X) :- food(X).\nfood(wine).\n", "Prolog"),
    # six languages of .m
    ("a.m", "(* ::Package:: *)\nf[x_] := x^2\n", "Wolfram Language"),
    ("a.m", 'BeginPackage["A`"]\n', "Wolfram Language"),
    ("a.m", "#import <A/A.h>\n@implementation B\n@end\n", "Objective-C"),
    ("a.m", "function y = f(x)\n  y = x';\nend\n", "MATLAB"),
    ("a.m", "## Copyright\nx = 1;\n", "MATLAB"),
    ("a.m", ":- module a.\n:- interface.\n", "Mercury"),
    ("XU.m", "XU ;a routine ;1/1/20\n N X S X=1\n Q\n", "M"),
    # others
    ("a.h", "@interface A : NSObject\n@end\n", "Objective-C"),
    ("a.h", "/* a\n   class of numbers */\nint f(void);\n", "C"),
    ("a.h", "class QA;\nclass B : public QA {\n};\n", "C++"),
    ("a.fs", "\\ stacks\n: dup2 ( a b -- ) 2dup ;\n", "Forth"),
    ("a.fs", "namespace A\nopen System\n", "F#"),
    ("a.pl", "#!/usr/bin/perl\nuse strict;\nmy $x = ':-';\n", "Perl"),
    ("INDEX.pl", "index((rdf), user, rdf, x).\n", "Prolog"),
    ("a.pl", "use v6;\nsay 1;\n", "Raku"),
    ("a.t", "use strict;\nuse Test::More;\n", "Perl"),
    ("a.sc", "Foo : Bar {\n  var <a;\n  *new { |x| ^super.new }\n}\n", "SuperCollider"),
    ("a.sc", "package a.b\n\nobject C {\n  def f = 1\n}\n", "Scala"),
    ("a.gd", "extends Node\nfunc f():\n\tpass\n", "GDScript"),
    ("a.gd", 'DeclareOperation("F", [IsInt]);\n', "GAP"),
    ("a.inc", "#declare X = 1;\n", "POV-Ray SDL"),
    ("a.inc", "<?php\nfunction f() {}\n", "PHP"),
    ("a.inc", "{$ifdef A}\nbegin\nend;\n", "Pascal"),
    ("a.ml", "structure A = struct\n fun f x = x\nend\n", "Standard ML"),
    ("a.ml", "let f x = x + 1\n", "OCaml"),
    ("a.cls", "\ufeffVERSION 1.0 CLASS\nBEGIN\n  MultiUse = -1\nEND\n".lstrip("\ufeff"), "VBA"),
    ("a.cl", "__kernel void f(__global int *a) {\n}\n// x\n", "OpenCL"),
    ("a.cl", "(defun f (x) x)\n", "Common Lisp"),
    ("a.md", '(define_insn "a")\n;; x\n', "GCC Machine Description"),
    ("a.md", "# Title\n", "Markdown"),
    ("a.rs", "fn main() {}\n", "Rust"),
    ("a.rs", "//! ```c\n//! #include <a.h>\n//! ```\nfn main() {}\n", "Rust"),
    ("a.res", "let add = (a, b) => a + b\nmodule A = {}\nlet x = 1\n", "ReScript"),
    ("a.as", "package a.b {\n  import c.D;\n}\n", "ActionScript"),
    ("a.hh", "<?hh\nfunction f(): void {}\n", "Hack"),
    ("a.hh", "class A;\n", "C++"),
    ("a.rs", "#pragma version(1)\n#pragma rs java_package_name(a)\n", "RenderScript"),
    ("a.ts", "const a = f<TS>(1)\n", "TypeScript"),
    ("a.ts", '<TS version="2.1">\n', "XML"),
    ("a.e", "class A\nfeature\n  x: INTEGER\nend\n", "Eiffel"),
    ("a.x", "program P {\n version V { void F(void) = 1; } = 1;\n} = 2;\n", "RPC"),
    ("a.l", "%{\nint n;\n%}\n%%\na  n++;\n%%\n", "Lex"),
    ("a.mod", "MODULE A;\nEND A.\n", "Modula-2"),
    ("a.es", "export default {}\n", "JavaScript"),
    # names that no table had
    ("a.rkt", "#lang racket\n", "Racket"),
    ("a.agda", "module A where\n", "Agda"),
    ("a.sci", "function y = f(x)\n", "Scilab"),
    ("a.ex", "", "Elixir"),
    ("a.thrift", "", "Thrift"),
    ("Jenkinsfile", "", "Groovy"),
    ("meson.build", "", "Meson"),
    ("a.graphql", "", "GraphQL"),
]


@pytest.mark.parametrize(("name", "text", "wanted"), FILES)
def test_content_decides(name: str, text: str, wanted: str) -> None:
    assert identify(f"src/{name}", text.encode()) == (wanted, "code")


@pytest.mark.parametrize("name", ["a.v", "a.pp", "a.d", "a.pro", "a.m", "a.gd", "a.b"])
def test_nothing_decides(name: str) -> None:
    verdict = judge(name, b"1 2 3\n")
    assert verdict is not None and verdict.language == "unknown" and not verdict.is_sure
    assert identify(name, b"1 2 3\n") == ("unknown", "code")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.pro", "-keep class a.B\n"), ("a.n", ".TH a n\n"), ("a.cls", "\\ProvidesClass{a}\n")],
)
def test_it_is_no_language_of_the_corpus(name: str, text: str) -> None:
    assert identify(name, text.encode()) is None


def test_a_default_is_not_sure() -> None:
    for name, wanted in (("a.h", "C"), ("a.pl", "Perl"), ("a.ts", "TypeScript"), ("a.r", "R")):
        verdict = judge(name, b"x\n")
        assert verdict == (wanted, False)
    assert judge("a.py", b"") == ("Python", True)


def test_a_long_licence_hides_nothing() -> None:
    licence = (
        "(* " + "all rights reserved\n" * 1000 + "*)\n"
    )  # a sign of Coq where nothing else is one
    assert len(licence) < HEAD_BYTES
    assert identify("a.v", (licence + "module a(b);\nendmodule\n").encode()) == ("Verilog", "code")


def test_the_table_fills_the_paper() -> None:
    """103 languages: ten with published shares, and 93 others."""
    assert len(LINGUIST.code) > 500 and "unknown" not in LINGUIST.code
    published = {"Java", "Python", "JavaScript", "Markdown", "TypeScript", "C", "C++", "PHP"}
    assert published | {"C#", "HTML", "Racket", "Coq", "Puppet", "SQL"} <= LINGUIST.code
    assert not LINGUIST.code & LINGUIST.prose
    assert all(domain_of(name) == "code" for name in LINGUIST.code)
    # data, logs and documents are no programs
    for name in ("a.json", "a.csv", "a.svg", "a.log", "a.csproj", "a.ps", "a.bib", "a.1", "a.po"):
        assert language_of_name(name) is None, name
    assert all(
        name in LINGUIST.code | {""} for names in LINGUIST.extensions.values() for name in names
    )


def test_what_is_taken_of_this_machine_is_as_before() -> None:
    for name, wanted in (("a.py", "Python"), ("a.rkt", None), ("man.n", None), ("a.tex", "TeX")):
        assert common_language_of_name(name) == wanted
    assert common_language_of_name("a.d") == "D"


ATOMS = ("a ", "a\n", "(", "\na(", "a.", "a/", ":", "\na :", "{", "import ", "\nusing A", "case\n")


@pytest.mark.parametrize("extension", sorted(SHARED))
def test_no_file_takes_long(extension: str) -> None:
    """Of rules with several loops, some took minutes for 50 kB of one of these."""
    repeated = ((atom, "") for atom in (*ATOMS, "\n", " ", "match\n", "\nfunction "))
    for atom, around in (*repeated, ("\n", "a"), (" \n", "a")):
        head = (around + atom * ((HEAD_BYTES - 2) // len(atom)) + around).encode()
        start = time.thread_time()
        decide(extension, head)
        assert time.thread_time() - start < 1, atom
