"""Sphinx configuration; the pages are put together by `build.py` beside this file."""

from importlib import metadata

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "deepfake-nb"
author = "The deepfake-nb authors"
copyright = "2026 onwards, the deepfake-nb authors"
release = metadata.version("deepfake-nb")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "sphinx_book_theme"
html_title = "deepfake-nb"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "use_download_button": False}
html_theme_options |= {"navbar_persistent": []}
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # drawn by the browser itself: the site has to be whole without a network

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "mystnb.mime_priority", "ref.python"]

viewcode_follow_imported_members = False  # else pages of source link to places that no page has
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False


def inline_formula(translator, node):
    """Write a formula within a line."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def formula(translator, node):
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
