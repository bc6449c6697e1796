"""The site: ``sphinx-build -W -c docs docs/pages docs/_build/html``, which runs no notebook and needs no network.

Add ``-E`` after a change of code that a table is made of. The pages load nothing from other hosts.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

project = "tl_jax"
html_title = "tl_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "site_tables"]
exclude_patterns = ["runs/*", "**/runs/*"]  # what a notebook leaves that was run in its folder

# furo: well kept, with light and dark mode; takes the system's fonts and loads nothing; one menu shows all pages.
html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["static"]
html_css_files = ["extra.css"]
html_theme_options = {
    f"{mode}_css_variables": {"color-brand-primary": color, "color-brand-content": color, "color-brand-visited": color}
    for mode, color in (("light", "#00695c"), ("dark", "#4db6ac"))  # 4.5 to 1 on the background of each
}
html_show_copyright = False
html_sourcelink_suffix = ""  # so that a page's source, and the notebook, have their own names
html_math_renderer = "mathml"
smartquotes_action = "D"  # dashes alone: a quote may be code

myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

add_module_names = False
python_maximum_signature_line_length = 88
autodoc_default_options = {"special-members": "__init__, __call__"}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
napoleon_custom_sections = [("Attributes of the class", "Attributes")]
