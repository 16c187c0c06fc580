"""What Sphinx is told; `make docs` builds the pages into docs/_build/html."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import adamas

_HERE = Path(__file__).parent
_HEADERS = _HERE.parent / "csrc/include/adamas"

project = "adamas"
copyright = "the authors of adamas"  # noqa: A001
version = release = adamas.__version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "py:obj"
highlight_language = "none"
smartquotes = False  # strings in docstrings are to be copied

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = f"adamas {release}"
html_static_path = ["_static"]
html_css_files = ["adamas.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 8,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_sidebars = {"NUMERICS": [], "cpp/*": [], "performance": [], "testing": [], "quickstart": []}

_FIGURE = re.compile(r"^:::\{figure\} (\S+)\n.*?^:::\n", re.MULTILINE | re.DOTALL)


def _drop_missing_figures(_app: Any, name: str, source: list[str]) -> None:
    """Leave out the pictures that the benchmarks have not drawn yet."""
    folder = (_HERE / name).parent

    def kept(figure: re.Match[str]) -> str:
        return figure[0] if (folder / figure[1]).exists() else ""

    source[0] = _FIGURE.sub(kept, source[0])


def _list_headers(_app: Any, name: str, source: list[str]) -> None:
    """Show every public header on the page of headers, so that none can be forgotten."""
    if name != "cpp/headers":
        return
    for path in sorted(_HEADERS.glob("*.h*")):
        language = "c" if path.suffix == ".h" else "cpp"
        include = f":::{{literalinclude}} ../../csrc/include/adamas/{path.name}\n"
        source[0] += f"\n## {path.name}\n\n{include}:language: {language}\n:::\n"


def _shorten_signature(_app: Any, *described: Any) -> tuple[str | None, str | None]:
    """Leave out the argument that only serves to refuse unknown ones."""
    signature, returned = described[-2:]
    return signature and signature.replace(", **unknown)", ")"), returned


def _write_inline_math(writer: Any, node: Any) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _write_block_math(writer: Any, node: Any) -> None:
    """Write MathML, which browsers know: formulas need no script and no network."""
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Prepare the sources as they are read, and write formulas."""
    app.connect("autodoc-process-signature", _shorten_signature)
    app.add_html_math_renderer("mathml", (_write_inline_math, None), (_write_block_math, None))
    app.connect("source-read", _drop_missing_figures)
    app.connect("source-read", _list_headers)
