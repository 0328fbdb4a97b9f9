"""Questions on Python: what a session prints, how something is used, write a function.

All come from the docstrings of installed packages, whose sessions are those that people wrote.
Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import random
import re
import sys
import textwrap
from collections.abc import Iterator

from data_pipeline.tools.chat_set.rows import Row, asked, is_whole
from data_pipeline.tools.chat_set.summaries import act, summary

MAX_LINES = 30
"""Of a function that is asked for, without its docstring."""
_ADDRESS = re.compile(r"<[\w. ]+ (?:object )?at 0x|0x[0-9a-f]{6,}|\.\.\.|<BLANKLINE>|Traceback")
_PRINTS = (
    "What does this print?",
    "What is the output of the last line of this Python session?",
    "I type this into Python. What do I see after the last line?",
)
_USES = (
    "How do I use `{name}`? Please show an example.",
    "Show me with an example what `{name}` does.",
    "What is `{name}` for? Give an example.",
)
_WRITES = (
    "Write a Python function `{signature}` that can {act}.",
    "I need a Python function to {act}. Its signature should be `{signature}`.",
    "Please implement `{signature}` in Python: {act}.",
)


def rows_of_module(
    tree: ast.Module, module: str, source: str, licence: str, rng: random.Random
) -> Iterator[Row]:
    """Yield what the docstrings of a module can answer."""
    imports = _standard_imports(tree)
    for node, written in _documented(tree, module):
        docstring = ast.get_docstring(node) or ""
        # people import it from the package, not from a module of its own
        name = re.sub(r"\._\w+(?=\.)", "", written)
        examples = _examples(docstring)
        of = {"source": f"{source}:{name}", "licence": licence}
        yield from _printed(examples, of, rng)
        if examples:
            yield from _used(docstring, name, of, rng)
        if isinstance(node, ast.FunctionDef) and node in tree.body:
            yield from _written(node, docstring, examples, imports, of, rng)


def _documented(
    tree: ast.Module, module: str
) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Yield the public functions, classes and methods that have a docstring, with their names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node, f"{module}.{node.name}"
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield inner, f"{module}.{node.name}.{inner.name}"


def _examples(docstring: str) -> list[doctest.Example]:
    if ">>>" not in docstring:
        return []
    try:
        return doctest.DocTestParser().get_examples(docstring)
    except ValueError:
        return []


def _clean(source: str) -> str:
    return re.sub(r"\s*# ?doctest:.*", "", source).rstrip()


def _printed(
    examples: list[doctest.Example], of: dict[str, str], rng: random.Random
) -> Iterator[Row]:
    """Yield a session up to a line whose output is short; what it needs must stand in it."""
    ends = [n for n, e in enumerate(examples) if e.want and n < 8 and len(e.want) < 300]
    for end in rng.sample(ends, min(2, len(ends))):
        session = examples[: end + 1]
        want = session[-1].want.rstrip()
        code = "\n".join(_clean(e.source) for e in session)
        if _ADDRESS.search(want) or "random" in code or not _stands_alone(code):
            continue
        shown = "\n".join(_prompted(e, last=e is session[-1]) for e in session)
        question = f"{rng.choice(_PRINTS)}\n\n```python\n{shown}\n```"
        yield asked(
            "python_prints", question, f"```\n{want}\n```",
            reasoning=_steps(session), made="question by rule; the session and its output were "
            "written by people", **of,
        )  # fmt: skip


def _prompted(example: doctest.Example, *, last: bool) -> str:
    first, *rest = _clean(example.source).split("\n")
    lines = [f">>> {first}", *(f"... {line}".rstrip() for line in rest)]
    return "\n".join(lines if last or not example.want else [*lines, example.want.rstrip()])


def _steps(session: list[doctest.Example]) -> str:
    """Return what a session does, line by line."""
    told = []
    for number, example in enumerate(session, 1):
        code = _clean(example.source).split("\n")[0]
        try:
            node = ast.parse(_clean(example.source)).body[0]
        except (SyntaxError, IndexError):
            return ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            does = "imports names and prints nothing"
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            does = f"sets {ast.unparse(_target(node))} and prints nothing"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            does = f"defines {node.name} and prints nothing"
        elif example.want and example is not session[-1]:
            does = f"shows {example.want.strip()}" if len(example.want) < 60 else "prints its value"
        elif isinstance(node, ast.Expr) and example is session[-1]:
            does = "is the line in question; its value is shown by its repr"
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "print":
                does = "is the line in question; print writes its arguments as text"
        else:
            does = "runs and prints nothing"
        told.append(f"Line {number}, `{code}`, {does}.")
    return "\n".join(told)


def _target(node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> ast.expr:
    return node.targets[0] if isinstance(node, ast.Assign) else node.target


def _stands_alone(code: str) -> bool:
    """Tell whether every name that code reads is built in, or set or imported by it."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    return not free_names(tree)


def free_names(tree: ast.AST) -> set[str]:
    """Return the names that code reads and neither sets nor has from Python itself."""
    read: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.arg(arg=name):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in names}
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                bound.add(name)
    return read - bound


def _used(docstring: str, name: str, of: dict[str, str], rng: random.Random) -> Iterator[Row]:
    """Yield what the first paragraph of a docstring says, with its first session."""
    told = summary(docstring)
    session = re.search(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)", docstring, re.M)
    shows = session is not None and re.search(r"^[ \t]*(?!>>>|\.\.\.)\S", session[0], re.M)
    if not told or session is None or not shows or session[0].count("\n") > 25:
        return
    code = re.sub(r"[ \t]*# ?doctest:.*", "", textwrap.dedent(session[0])).rstrip()
    answer = f"{told}\n\n```python\n{code}\n```"
    if is_whole(answer) and len(told) > 20:
        made = "question by rule; summary and session of the docstring, written by people"
        yield asked("python_usage", rng.choice(_USES).format(name=name), answer, made=made, **of)


def _standard_imports(tree: ast.Module) -> dict[str, str]:
    """Return by name the import statements of a module that take it from the standard library."""
    found = {}
    for node in tree.body:
        is_from = isinstance(node, ast.ImportFrom) and not node.level
        if not is_from and not isinstance(node, ast.Import):
            continue
        assert isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names:
            top = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            if top.split(".")[0] in sys.stdlib_module_names and top != "__future__":
                one = ast.ImportFrom(top, [alias], 0) if is_from else ast.Import([alias])
                found[(alias.asname or alias.name).split(".")[0]] = ast.unparse(one)
    return found


def _written(
    node: ast.FunctionDef,
    docstring: str,
    examples: list[doctest.Example],
    imports: dict[str, str],
    of: dict[str, str],
    rng: random.Random,
) -> Iterator[Row]:
    """Yield the request for a function that needs nothing but the standard library."""
    task = act(docstring)
    if not task or node.decorator_list or len(node.body) < 2:
        return
    bare = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(bare, ast.FunctionDef)
    bare.body = bare.body[1:]
    needed = free_names(bare)
    code = ast.unparse(bare)
    lines = code.count("\n")
    if (
        "global " in code
        or needed - imports.keys()
        or not 2 <= lines <= MAX_LINES
        or not _returns(bare)
    ):
        return
    told = ast.unparse(ast.parse(f"def f(): {(summary(docstring) or '')!r}"))
    head, _, body = code.partition("\n")
    doc = textwrap.indent(told.split("\n", 1)[1].strip().strip("'\""), "    ")
    doc = f'    """{doc.strip()}"""'
    header = "\n".join(sorted({imports[name] for name in needed}))
    answer = f"{header}\n\n\n{head}\n{doc}\n{body}" if header else f"{head}\n{doc}\n{body}"
    question = rng.choice(_WRITES).format(
        signature=head.removeprefix("def ").removesuffix(":"), act=task
    )
    usable = [
        e for e in examples[:2] if e.want and len(e.want) < 200 and not _ADDRESS.search(e.want)
    ]
    if usable:
        shown = "\n".join(_prompted(e, last=True) + f"\n{e.want.rstrip()}" for e in usable)
        question += f"\n\nFor example:\n\n```python\n{shown}\n```"
    if is_whole(f"```python\n{answer}\n```"):
        made = "request by rule from the docstring; the function was written by people"
        reasoning = _plan(bare, needed)
        yield asked(
            "python_writes", question, f"```python\n{answer}\n```",
            reasoning=reasoning, made=made, **of,
        )  # fmt: skip


def _returns(node: ast.FunctionDef) -> bool:
    return any(isinstance(n, ast.Return | ast.Yield) and n.value for n in ast.walk(node))


def _plan(node: ast.FunctionDef, needed: set[str]) -> str:
    """Return what a function takes, needs and does, statement by statement."""
    taken = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    told = [f"The function takes {', '.join(taken) or 'nothing'}."]
    if needed:
        told.append(f"Of the standard library it needs {', '.join(sorted(needed))}.")
    for statement in node.body:
        line = ast.unparse(statement).split("\n")[0].rstrip(":")
        match statement:
            case ast.If():
                told.append(f"It treats the case {ast.unparse(statement.test)} on its own.")
            case ast.For():
                over = ast.unparse(statement.iter)
                told.append(f"It goes through {over}, each as {ast.unparse(statement.target)}.")
            case ast.While():
                told.append(f"It repeats as long as {ast.unparse(statement.test)}.")
            case ast.Return() | ast.Expr(value=ast.Yield()):
                told.append(f"At the end: {line}.")
            case ast.Assign() | ast.AugAssign():
                told.append(f"It keeps {ast.unparse(_target(statement))}.")
            case ast.Try():
                told.append("It is ready for an error.")
    return " ".join(told)
