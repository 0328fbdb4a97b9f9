"""Imports point one way: which room may import which, and no circle of files anywhere.

Every import statement counts, also one inside a function or under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("loopcoder", "data_pipeline", "launch")

BASE = {
    "loopcoder.errors",
    "loopcoder.storage",
    "loopcoder.backends",
    "loopcoder.network",
    "loopcoder.origin",
    "loopcoder.page",
    "loopcoder.config",
}
"""What needs no torch and may be imported from anywhere above it."""
MODEL = {"loopcoder.model", "loopcoder.ops"}
MAY_IMPORT: Mapping[str, set[str]] = {
    "loopcoder.errors": set(),
    "loopcoder.storage": {"loopcoder.errors"},
    "loopcoder.backends": {"loopcoder.errors"},
    "loopcoder.network": {"loopcoder.errors"},
    "loopcoder.origin": {"loopcoder.errors"},
    "loopcoder.page": set(),
    "loopcoder.config": {"loopcoder.errors", "loopcoder.storage", "loopcoder.backends"},
    "loopcoder.chat": BASE,
    "loopcoder.ops": BASE,
    "loopcoder.model": BASE | {"loopcoder.ops"},
    "loopcoder.hf": BASE
    | {
        "loopcoder.chat",
        "loopcoder.checkpoint",
        "loopcoder.data",
        "loopcoder.metrics.started",
        "loopcoder.metrics.writer",
        "data_pipeline.tokenizer.imported",
    },
    "loopcoder.plan": BASE
    | {
        "loopcoder.checkpoint.format",
        "loopcoder.data.manifest",
        "loopcoder.data.mirror",
        "loopcoder.data.places",
        "loopcoder.model.flops",
        "loopcoder.optim.schedule",
        "loopcoder.parallel.layout",
    },
    "loopcoder.data": BASE | MODEL,
    "loopcoder.optim": BASE | MODEL,
    "loopcoder.metrics": BASE,
    "loopcoder.parallel": BASE | MODEL | {"loopcoder.data"},
    "loopcoder.checkpoint": BASE
    | MODEL
    | {"loopcoder.data", "loopcoder.optim", "loopcoder.parallel"},
    "loopcoder.doctor": BASE
    | {"loopcoder.metrics.throughput", "loopcoder.parallel", "loopcoder.plan"},
    "loopcoder.train": BASE
    | MODEL
    | {
        "loopcoder.chat.templates",
        "loopcoder.checkpoint",
        "loopcoder.data",
        "loopcoder.diagnose.measures",
        "loopcoder.metrics",
        "loopcoder.optim",
        "loopcoder.parallel",
    },
    # The command line alone knows everything.
    "loopcoder.cli": BASE
    | {
        "loopcoder.chat",
        "loopcoder.checkpoint.agreed",
        "loopcoder.checkpoint.copies.early",
        "loopcoder.checkpoint.copies.lacking",
        "loopcoder.checkpoint.copies.places",
        "loopcoder.checkpoint.copies.stored",
        "loopcoder.checkpoint.damage",
        "loopcoder.checkpoint.format",
        "loopcoder.checkpoint.history",
        "loopcoder.checkpoint.pinned",
        "loopcoder.checkpoint.pruning",
        "loopcoder.checkpoint.rebuilt",
        "loopcoder.checkpoint.rewind",
        "loopcoder.checkpoint.start",
        "loopcoder.checkpoint.state",
        "loopcoder.diagnose",
        "loopcoder.differences",
        "loopcoder.doctor",
        "loopcoder.evaluate",
        "loopcoder.hf",
        "loopcoder.infer",
        "loopcoder.loaded",
        "loopcoder.data",
        "loopcoder.metrics",
        "loopcoder.optim.schedule",
        "loopcoder.parallel.mcore",
        "loopcoder.plan",
        "loopcoder.train",
        "data_pipeline",
        "launch",
    },
    "loopcoder.__main__": {"loopcoder.cli", "loopcoder.storage"},
    # For notebooks: what a run is made of, in one process.
    "loopcoder.loaded": BASE
    | MODEL
    | {
        "loopcoder.chat.calls",
        "loopcoder.checkpoint",
        "loopcoder.data",
        "loopcoder.hf",
        "loopcoder.infer",
        "loopcoder.metrics",
        "loopcoder.parallel",
        "loopcoder.train",
    },
    "loopcoder.infer": BASE
    | MODEL
    | {
        "loopcoder.chat",
        "loopcoder.checkpoint",
        "loopcoder.data",
        "loopcoder.hf",
        "loopcoder.parallel",
        "loopcoder.plan.device",
        "data_pipeline.tokenizer.spec",
    },
    "loopcoder.evaluate": BASE
    | {
        "loopcoder.chat",
        "loopcoder.data.places",
        "loopcoder.infer",
        "loopcoder.metrics",
        "loopcoder.plan.device",
    },
    # Processes of generated programs: the standard library alone.
    "loopcoder.evaluate.sandbox": {"loopcoder.errors"},
    "loopcoder.differences": BASE | {"loopcoder.checkpoint", "loopcoder.hf", "loopcoder.loaded"},
    "loopcoder.diagnose.measures": set(),
    "loopcoder.diagnose": BASE
    | MODEL
    | {
        "loopcoder.checkpoint",
        "loopcoder.data",
        "loopcoder.loaded",
        "loopcoder.metrics",
        "loopcoder.parallel",
        "loopcoder.train",
    },
    "launch": BASE | {"loopcoder.plan"},
    "data_pipeline": BASE
    | {
        "loopcoder.chat",
        "loopcoder.data.corpus",
        "loopcoder.data.indexed",
        "loopcoder.data.joined",
        "loopcoder.data.labels",
        "loopcoder.data.manifest",
        "loopcoder.data.mask",
        "loopcoder.data.mirror",
        "loopcoder.data.places",
        "loopcoder.data.tokenizer",
        "loopcoder.data.unigram",
    },
}
"""By room, whose files may also import each other."""
TEMPLATE = "loopcoder.hf.template."
"""Files that an export gets a copy of."""
WITHOUT_TORCH = (
    "data_pipeline",
    "launch",
    "loopcoder.chat",
    "loopcoder.cli",
    "loopcoder.plan",
    *sorted(BASE),
)
"""Processes of these are started before torch is, or at submit time."""


def modules(root: Path) -> dict[str, ast.Module]:
    """Return the parsed sources of the packages below `root` by their dotted names."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            dotted = ".".join(path.relative_to(root).with_suffix("").parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            found[dotted.removesuffix(".__init__")] = tree
    return found


def imports(module: str, known: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield what a module imports: a module of ours as the file it is, else the package's name."""
    for node in ast.walk(known[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level == 1 and module.startswith(TEMPLATE):  # transformers asks for them there
                source = f"{TEMPLATE}{source}"
            else:
                assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known else source


def room(module: str) -> str:
    """Return the room of a module: the longest name in the table that contains it."""
    fits = [name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")]
    return max(fits, key=len, default=module)


def folder(module: str) -> str:
    """Return the folder of the pipeline that a module is in, or the file at its top."""
    return ".".join(module.split(".")[:2])


def wrong_directions(known: Mapping[str, ast.Module]) -> list[str]:
    """Return every import that its room may not make."""
    wrong = []
    for module in known:
        own = room(module)
        if own not in MAY_IMPORT:
            if "." in module:  # the packages themselves hold nothing, or load lazily
                wrong.append(f"{module} belongs to no room of the table")
            continue
        allowed = MAY_IMPORT[own] | {own}
        for imported in imports(module, known):
            top = imported.split(".")[0]
            if imported in PACKAGES:
                continue  # the package itself, which has a version
            if top in PACKAGES:
                if not any(f"{imported}.".startswith(f"{name}.") for name in allowed):
                    wrong.append(f"{module} imports {imported}")
            elif top in ("torch", "megatron") and own in WITHOUT_TORCH:
                wrong.append(f"{module} imports {imported}")
    return wrong


def circle(known: Mapping[str, ast.Module], *, rooms: bool = False) -> list[str]:
    """Return the files of a circle of imports, or the rooms of the pipeline; [] without one."""
    graph: dict[str, set[str]] = {}
    for module in known:
        found = {i for i in imports(module, known) if i in known}
        if rooms:
            module = folder(module)  # noqa: PLW2901
            found = {folder(i) for i in found} - {module}
        graph.setdefault(module, set()).update(found)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def ours() -> dict[str, ast.Module]:
    return modules(REPOSITORY)


def test_imports_point_one_way(ours: dict[str, ast.Module]) -> None:
    assert len(ours) > 100
    assert wrong_directions(ours) == []


def test_no_file_imports_itself_by_a_detour(ours: dict[str, ast.Module]) -> None:
    assert circle(ours) == []


def test_no_room_of_the_pipeline_imports_itself_by_a_detour(ours: dict[str, ast.Module]) -> None:
    pipeline = {
        module: tree for module, tree in ours.items() if module.startswith("data_pipeline.")
    }
    assert circle(pipeline, rooms=True) == []
    planted = pipeline | {
        "data_pipeline.tasks.chunks": ast.parse("import data_pipeline.shuffle.shards")
    }
    assert "data_pipeline.tasks" in circle(planted, rooms=True)
    assert circle(planted) == []


PLANTED = {
    ("loopcoder.train.loop", "from data_pipeline.driver import prepare"),
    ("loopcoder.data.corpus", "def f():\n    import data_pipeline.schema"),
    ("loopcoder.config.schema", "from loopcoder.model.plt import PLTModel"),
    ("loopcoder.storage.files", "from loopcoder.config.schema import Config"),
    ("loopcoder.model.plt", "from loopcoder.train import loop"),
    ("loopcoder.train.state", "from loopcoder.cli.main import main"),
    ("data_pipeline.driver", "from loopcoder.data.blend import Blend"),
    ("data_pipeline.schema", "if TYPE_CHECKING:\n    from loopcoder.train.loop import Run"),
    ("data_pipeline.driver", "import torch"),
    ("launch.torchrun", "from data_pipeline.driver import prepare"),
    ("loopcoder.diagnose.measures.rank", "from loopcoder.diagnose.results import ALL"),
}


@pytest.mark.parametrize(("module", "statement"), sorted(PLANTED))
def test_a_planted_import_is_found(
    ours: dict[str, ast.Module], module: str, statement: str
) -> None:
    assert module in ours
    wrong = wrong_directions(ours | {module: ast.parse(statement)})
    assert [line for line in wrong if line.startswith(f"{module} imports")]


def test_a_planted_circle_is_found(ours: dict[str, ast.Module]) -> None:
    """A file at the bottom imports one that reaches it."""
    planted = ours | {"loopcoder.errors": ast.parse("import loopcoder.config.check")}
    assert "loopcoder.errors" in circle(planted)


def test_a_new_room_must_be_in_the_table(ours: dict[str, ast.Module]) -> None:
    wrong = wrong_directions(ours | {"loopcoder.attic.things": ast.parse("")})
    assert wrong == ["loopcoder.attic.things belongs to no room of the table"]
