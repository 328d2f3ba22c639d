"""Draw the diagrams in ```mermaid fences, as GitHub does, by the copy of Mermaid in _static."""

import html

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

_SCRIPTS = ("mermaid/mermaid.tiny.js", "diagrams.js")


class Mermaid(Directive):
    """A diagram: its source, which a script of the page replaces by a drawing."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        source = html.escape("\n".join(self.content))
        return [nodes.raw("", f'<pre class="mermaid">{source}</pre>\n', format="html")]


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Load Mermaid on a page with a diagram."""
    if '<pre class="mermaid">' in context.get("body", ""):
        for script in _SCRIPTS:
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
