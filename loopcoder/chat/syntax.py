"""What a chat template reads and writes, by its syntax tree."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from loopcoder.backends import require

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""As transformers looks for it."""


def has_generation(template: str) -> bool:
    """Whether a template marks what the assistant says."""
    return _GENERATION.search(template) is not None


@lru_cache(maxsize=64)
def names_in(template: str) -> frozenset[str]:
    """Return the names of variables and fields that a template reads, and its short literals, by
    which it may ask for a field.

    Raises:
        InputError: jinja2 is not installed.
        jinja2.TemplateSyntaxError: it is no template.
    """
    nodes = _jinja2().nodes
    found: set[str] = set()
    for node in _parsed(template).find_all((nodes.Name, nodes.Getattr, nodes.Const)):
        name = getattr(node, "name", getattr(node, "attr", getattr(node, "value", None)))
        if isinstance(name, str):
            found.add(name)
    return frozenset(found)


def texts_in(template: str) -> list[str]:
    """Return the texts that a template has to write: those outside of its statements, and literals.

    Raises:
        InputError: jinja2 is not installed.
        jinja2.TemplateSyntaxError: it is no template.
    """
    nodes = _jinja2().nodes
    tree = _parsed(template)
    outside = [node.data for node in tree.find_all(nodes.TemplateData)]
    return outside + [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]


def _parsed(template: str) -> Any:
    jinja2 = _jinja2()

    class Generation(jinja2.ext.Extension):  # type: ignore[name-defined, misc]
        """The block that transformers adds to the language."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment
    return sandbox(extensions=[Generation, jinja2.ext.loopcontrols]).parse(template)


def _jinja2() -> Any:
    fact, why = "a chat template is a program in Jinja", "jinja2 is not installed"
    for module in ("jinja2.ext", "jinja2.sandbox", "jinja2.nodes"):
        require(module, fact, why, "pip install 'jinja2>=3.1.6'")
    return require("jinja2", fact, why, "pip install 'jinja2>=3.1.6'")
