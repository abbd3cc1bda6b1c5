"""The documentation site: the Markdown pages as they stand, and references made from docstrings and `--help`.

The source folder is the repository's root, so that relative links are the same here and on GitHub. Nothing is fetched:
system fonts, no CDN, and a search that runs in the page.
"""

import inspect
import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from reeltag.cli.main import app as commands
from reeltag.core.version import __version__

project = "reeltag"
author = "The reeltag engineers"
project_copyright = "The reeltag engineers"
release = version = __version__

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.md"]
exclude_patterns = ["README.md"]  # the site begins with docs/index.md
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4  # as on GitHub
suppress_warnings = ["misc.highlighting_failure"]  # an excerpt of JSON is no JSON
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike"}
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "reeltag"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # pages cannot fetch each other from a file
html_show_sphinx = False


def is_settings(obj: Any) -> bool:
    """Whether it is a table of settings, which people write in TOML."""
    return inspect.isclass(obj) and issubclass(obj, BaseModel)


def as_written(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: what is markup to Sphinx means itself."""
    parts = re.split(r"(`[^`]*`)", "\n".join(lines))
    parts[::2] = [re.sub(r"[|*]", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def list_keys(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The keys of a table of settings, with their defaults."""
    for key, field in obj.model_fields.items() if is_settings(obj) else ():
        default = field.get_default(call_default_factory=not field.default_factory_takes_validated_data)
        value = "required" if default is PydanticUndefined else f"default ``{default!r}``"
        name = field.alias or key
        lines.append(f":param {name}: {'; '.join(filter(None, [field.description, value]))}")


def without_call(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """The signature of a table of settings would only repeat its keys."""
    return ("", None) if is_settings(obj) else None


def add_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Every command's help, below the page that introduces them; examples become blocks, and options code."""
    if page == "docs/reference/cli":
        text = commands.generate_docs()
        text = text[text.index("\n## reeltag ") :]
        text = re.sub(r"(?m)(?<!```console\n)^(?:Examples?: )?(reeltag .*)$", r"```sh\n\1\n```", text)
        source[0] += re.sub(r"(?m)^(?!reeltag ).*$", lambda line: re.sub(r"(?<!,) (--[\w-]+)", r" `\1`", line[0]), text)


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_commands)
    app.connect("autodoc-process-docstring", as_written, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", list_keys)
    app.connect("autodoc-process-signature", without_call)
