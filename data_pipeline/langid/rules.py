"""Own rules for extensions that several languages share, beside linguist's.

Each has a language and patterns, one of which must be found; they are tried in order. They were
written where packages of Debian showed linguist's rules to be wrong or silent;
`benchmarks/labels.py` measures all of them on others.
"""

from __future__ import annotations

THEIRS = ("",)
"""Stands for linguist's rules of the extension; what comes after them is weak."""

_CPP = (
    r"^[ \t]*#[ \t]*include[ \t]*<(?:[a-z_]{2,20}|c(?:std\w+|assert|math)|Q\w+)>",
    r"^[ \t]*template[ \t]*<",
    r"^[ \t]*(?:public|private|protected)[ \t]*(?:slots)?:",
    r"^[ \t]*(?:inline[ \t]+)?namespace[ \t]+\w[\w:]*[ \t]*(?:\{|$)",
    r"^[ \t]*using[ \t]+(?:namespace[ \t]|\w+[ \t]*=|[\w:]+::\w+[ \t]*;)",
    # a line of prose may begin with the word
    r"^[ \t]*class[ \t]+(?:[A-Z_]\w*[ \t]+)?\w+[ \t]*(?:final[ \t]*)?(?:[;{]|$)",
    r"^[ \t]*class[ \t][^:\n]*:[ \t]*(?:public|private|virtual|protected)\b",
    r"\bstd::\w|^[ \t]*(?:virtual|explicit|constexpr)[ \t]|[)\s]noexcept\b",
    r"\boperator[ \t]*[=<>+*(\[-]",
)
_PERL = (
    r"\A#!.{0,60}\bperl\b",
    r"^[ \t]*use[ \t]+(?:strict|warnings|vars|lib|utf8|v?5[\d.]*)\b",
    r"^[ \t]*(?:my|our|local)[ \t]+[$@%(]",
    r"^[ \t]*package[ \t]+\w+(?:::\w+)*[ \t]*[;{]",
    r"^[ \t]*sub[ \t]+\w+[ \t]*(?:\{|\([$@%;&\\]*\))",
    r"^[ \t]*(?:use|require)[ \t]+[A-Z]\w*(?:::\w+)+",
)
_PROLOG = (
    r"^:-[ \t]*(?:\w|\()",
    r"^[a-z]\w*(?:\([^\n]*\))?[ \t]*(?::-|-->)[ \t]*(?:$|\S)",
    r"^[a-z]\w*\([^\n#;{}$]*\)\.[ \t]*$",
)
_RAKU = (
    r"^[ \t]*use[ \t]+v6\b",
    r"^[ \t]*(?:unit[ \t]+)?(?:module|class|grammar|role)[ \t]+[A-Z][\w:-]*[ \t]*[{;]",
)

OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "asy": (
        ("Asymptote", r"^[ \t]*(?:import|size|draw|settings\.|pair|real|struct|path)\b"),
        THEIRS,
    ),
    "cl": (("Common Lisp", r"\A\s*(?:;|\((?i:def|in-package)|#\|)"), THEIRS),
    "d": (
        # what compilers write: target: sources
        ("Makefile", r"\A(?:#[^\n]*\n|\s)*[^\s:;{}(\"@]*[./][^\s:;{}(\"]*[ \t]*:(?:\s|\Z)"),
        (
            "D",
            r"^[ \t]*(?:module|(?:public[ \t]+|static[ \t]+)?import)[ \t]+\w[\w.]*[ \t]*[;:=,]",
        ),
        THEIRS,
        ("D", r"^[ \t]*(?:unittest|alias|enum|struct|class|interface|mixin|version[ \t]*\()"),
    ),
    "dsp": (
        THEIRS,
        ("Faust", r"^[ \t]*(?:import|declare|process|library)\b", r"^[ \t]*\w[^;=\n]*=[^=\n]"),
    ),
    "fs": (
        (
            "Forth",
            r"^(?:\\ |: \S|:noname\b)",
            r"(?i:^(?:create|variable|also|require|include|needs) \S)",
            r"(?i:^\S{1,20} (?:constant|value) \S)",
        ),
        (
            "GLSL",
            r"^[ \t]*(?:#version|precision[ \t]|uniform[ \t]|varying[ \t]|void[ \t]+main[ \t]*\()",
        ),
        THEIRS,
    ),
    "h": (
        (
            "Objective-C",
            r"^[ \t]*@(?:class|interface|protocol)[ \t]+\w",
            r"^[ \t]*#[ \t]*import\b",
        ),
        ("C++", *_CPP),
    ),
    "inc": (("PHP", r"<\?php\b"), THEIRS),
    "l": (("Lex", r"^%%[ \t]*$|^%(?:\{|option\b|x[ \t])"), THEIRS),
    "m": (
        (
            "Objective-C",
            r"^[ \t]*#[ \t]*(?:import\b|include[ \t]*[<\"])",
            r"^[ \t]*@(?:class|interface|implementation|protocol|import|end)\b",
        ),
        ("Mercury", r"^:-[ \t]*(?:module|pred|func|interface|import_module)\b"),
        (
            "Wolfram Language",
            r"^[ \t]*\(\*",
            r"^[ \t]*(?:BeginPackage|Begin|Needs)\[",
            r"^[ \t]*\$?[A-Z]\w*\[[^\]\n]*_[^\]\n]*\][ \t]*:?=",
        ),
        ("M", r"\A%?\w+(?:\([^)\n]*\))?[ \t]+(?:;|[nqsdkwi](?:ew|uit|et|o)?[ \t])"),
        (
            "MATLAB",
            r"^[ \t]*(?:%|##)",
            r"^[ \t]*(?:function|classdef)\b[^;\n]*$",
            r"^[ \t]*end(?:function|if|for|while|switch)?[ \t]*;?[ \t]*(?:[%#].*)?$",
            r"\.\.\.[ \t]*$",
            r"[\])]'[ \t]*[;*]",
        ),
        THEIRS,
        ("MATLAB", r"^[ \t]*\[?\w[^=\n]*=[^=].*;?[ \t]*$", r"^[ \t]*#"),
    ),
    "ml": (
        (
            "Standard ML",
            r"^[ \t]*(?:structure|functor|signature)[ \t]+\w",
            r"^[ \t]*fun[ \t]+\w[^\n>]*=[ \t\n]",
        ),
        ("OCaml", r"^[ \t]*(?:let|open|module|type|external|exception|class|include)[ \t]"),
        THEIRS,
    ),
    "mm": (("XML", r"\A\s*<(?:\?xml|map\b)"),),
    "pl": (("Perl", *_PERL), ("Prolog", *_PROLOG), ("Raku", *_RAKU), THEIRS),
    "plt": (("Prolog", *_PROLOG),),
    "pm": (("Perl", *_PERL), ("Raku", *_RAKU), THEIRS),
    "pp": (
        (
            "Puppet",
            r"^#[ \t]+@(?:summary|param)\b",
            r"^[ \t]*(?:class|define|node)[ \t]+['\"\w][^\n;]*(?:[({]|$)",
            r"^[ \t]*(?:type[ \t]+\w+::\w+|function[ \t]+[\w:]+[ \t]*\(.*\{)",
            r"^[ \t]*[\w'\"$:-]+[ \t]*=>[ \t]",
            r"^[ \t]*(?:[a-z]\w*::)*\w+[ \t]*\{[ \t]*['\"$\[]",
            r"^[ \t]*(?:include|require|contain)[ \t]+(?:::)?['\"]?\w+(?:::\w+)*['\"]?[ \t]*$",
        ),
        (
            "Pascal",
            r"(?i:^[ \t]*(?:unit|program|library|uses|procedure|function|begin|var|const)\b)",
            r"(?i:^[ \t]*end[.;]|\{\$\w)",
        ),
    ),
    "pro": (
        (
            "QMake",
            r"^[ \t]*(?:TEMPLATE|TARGET|SOURCES|HEADERS|QT|CONFIG|SUBDIRS|INCLUDEPATH|LIBS|DEFINES"
            r"|RESOURCES|FORMS|INSTALLS|OTHER_FILES|TRANSLATIONS)[ \t]*[-+*~]?=",
            r"^[ \t]*(?:load|requires|include)[ \t]*\(.*\)[ \t]*$",
        ),
        (
            "IDL",
            r"(?i:^[ \t]*(?:pro|function)[ \t]+[\w:]+[ \t]*(?:,|$|;))",
            r"(?i:^;\+[ \t]*$|^[ \t]*(?:compile_opt|endif|endelse|endfor|endwhile)\b)",
        ),
        ("Prolog", *_PROLOG),
        THEIRS,
    ),
    # examples of other languages in comments are no sign of RenderScript
    "rs": (
        (
            "Rust",
            r"^[ \t]*(?:use[ \t]+[\w:{]|fn[ \t]+\w|mod[ \t]+\w|pub[ (]|impl\b|macro_rules!"
            r"|extern[ \t]+crate|#!?\[|//[/!])",
        ),
        THEIRS,
    ),
    "sc": (
        (
            "Scala",
            r"^[ \t]*(?:package|import)[ \t]+[a-z]\w*\.",
            r"^[ \t]*(?:case[ \t]+)?(?:object|class|trait)[ \t]+[A-Z]\w*",
            r"^[ \t]*(?:override[ \t]+)?(?:def|val)[ \t]+\w",
        ),
        (
            "SuperCollider",
            r"^[ \t]*(?:\+[ \t]*)?[A-Z]\w*(?:\[\w*\])?[ \t]*(?::[ \t]*[A-Z]\w*[ \t]*)?\{",
            r"\^(?:this|super|\w)",
            r"^[ \t]*(?:var|arg|classvar)[ \t]",
            r"^[ \t]*\*?\w+[ \t]*\{[ \t]*(?:\||arg\b)",
        ),
        THEIRS,
    ),
    "scm": (
        (
            "Scheme",
            r"^[ \t]*\((?:define|use-modules|let|lambda|library|import|if|set!|begin)\b",
        ),
        THEIRS,
    ),
    "t": (("Perl", *_PERL), ("Raku", *_RAKU, r"^[ \t]*use[ \t]+Test;"), THEIRS),
    # linguist's <TS may be a type's argument
    "ts": (("XML", r"\A\s*<(?:\?xml|!DOCTYPE|TS\b)"),),
    "tst": (("GAP", r"^gap> "), ("Scilab", r"^//|\bassert_check\w+")),
    "v": (
        (
            "Coq",
            r"^[ \t]*(?:Theorem|Lemma|Definition|Fixpoint|CoFixpoint|Inductive|Notation|Record"
            r"|Structure|Section|Ltac|Extract|Extraction|Axiom|Parameter|Instance|Proof|Corollary"
            r"|(?:Local|Global|Polymorphic|Program)[ \t]+[A-Z]\w+|Require[ \t]+(?:Import|Export)"
            r"|From[ \t]+\w+[ \t]+Require|(?:Module|Import|Export|Set|Declare|Include)[ \t]+[A-Z])"
            r"\b",
        ),
        (
            "Verilog",
            r"^[ \t]*(?:endmodule|endprimitive|endfunction)\b",
            r"^[ \t]*`(?:define|ifn?def|include|timescale|default_nettype)\b",
        ),
        THEIRS,
        ("V", r"^(?:pub[ \t]+)?(?:fn|struct|enum)[ \t]+\w", r"^module[ \t]+\w+[ \t]*$"),
        (
            "Verilog",
            r"^[ \t]*(?:module|primitive|parameter|localparam|input|output|wire|reg|assign|always)"
            r"[ \t@\[]",
        ),
        ("Coq", r"\A\s*\(\*"),
    ),
}
