"""The documentation site: MyST pages, the API from its docstrings, the commands from their help.

`make docs` builds it. Nothing in a built page is loaded from another host, so it can be read
without a network and tells nobody that it is.
"""

from __future__ import annotations

import io
import os
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from pygments.lexers import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

REPOSITORY = Path(__file__).resolve().parents[1]

project = "das-gpu"
author = "The das-gpu contributors"
copyright = author  # noqa: A001 - Sphinx's name for it
release = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3

# What has no language is a formula or a drawing, not Python.
highlight_language = "text"

html_theme = "furo"
html_title = f"das-gpu {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# Docstrings put names into single backticks; most are parameters, which no page describes.
default_role = "code"
nitpicky = True
# What other packages' types are is said in their own documentation, on other hosts, and types in
# docstrings are words ("float64 array"): held to be there are das-gpu's own names and errors.
nitpick_ignore_regex = [(r"py:.*", r"(?!das_gpu\b|\w*Error$).*")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True


class CommandPages(SphinxDirective):
    """Every command's own help, as its parser writes it, a section each."""

    def run(self) -> list[nodes.Node]:
        """Ask the program itself."""
        from das_gpu.cli import application

        return [self._section(name) for name in application() if not name.startswith("-")]

    def _section(self, command: str) -> nodes.Node:
        section = nodes.section(ids=[nodes.make_id(f"das-gpu {command}")])
        section += nodes.title(text=f"das-gpu {command}")
        text = help_of(command)
        section += nodes.literal_block(text, text, language="text")
        return section


def help_of(command: str) -> str:
    """What a command says with ``--help`` on a terminal of 80 columns without colour."""
    from das_gpu.cli import main

    said = io.StringIO()
    plain = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    with redirect_stdout(said), mock.patch.dict(os.environ, plain):
        main([command, "--help"])
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())


class RecipeSettings(SphinxDirective):
    """The settings of a recipe, a table each: name, default, meaning."""

    def run(self) -> list[nodes.Node]:
        """Ask the recipe itself."""
        from das_gpu.settings import TABLES

        lines: list[str] = []
        for name, kind in TABLES.items():
            lines += [f"**[{name}]** {kind.__doc__ or ''}".strip(), ""]
            lines += ["| setting | default | meaning |", "|---|---|---|"]
            values = kind().model_dump()
            for key, field in kind.model_fields.items():
                default = "" if values[key] is None else f"`{values[key]}`"
                lines.append(f"| `{name}.{key}` | {default} | {field.description} |")
            lines.append("")
        return list(self.parse_text_to_nodes("\n".join(lines)))


def link_error(app: Sphinx, env: Any, node: Any, shown: nodes.Node) -> nodes.Node | None:
    """Lead from ``Raises`` sections, which name errors alone, to where these are described."""
    if node.get("reftype") != "exc" or "." in node["reftarget"]:
        return None
    target = f"das_gpu.errors.{node['reftarget']}"
    found: nodes.Node | None = env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, "exc", target, node, shown
    )
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives that the pages use."""
    app.add_directive("command-pages", CommandPages)
    app.add_directive("recipe-settings", RecipeSettings)
    app.connect("missing-reference", link_error)
    # Pygments has no colours for what it does not know, and Sphinx complains of it.
    app.add_lexer("csv", TextLexer)
    return {"parallel_read_safe": True}
