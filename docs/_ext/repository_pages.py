"""Make pages that are written for GitHub pages of the site.

- The README is the home page and CHANGELOG.md a page; links to such files lead to their pages.
- The groups of links in index.md are the navigation.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
# The files outside docs/ that are pages of the site.
_PAGES = {"README.md": "index", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing"}
_SHOWN = {"index": "README.md", "changelog": "CHANGELOG.md"}  # in place of a page's introduction
_NAMED = re.compile(r"\[[^\]`]+\.md\]\(([^)\s:]+\.md)")  # the name of a file as a link's text
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
_GROUP = re.compile(r"^## (.+)\n\n((?:- .+\n(?:  .+\n)*)+)", re.MULTILINE)
_ENTRY = re.compile(r"^- \[(.+?)\]\((.+?)\.md\)", re.MULTILINE)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Change the text of a page after Sphinx has read it."""
    text = re.sub(_LINK, lambda link: _find_page(link[1]), source[0])
    if page in _SHOWN:
        file = ROOT / _SHOWN[page]
        app.env.note_dependency(str(file))
        groups = text[len(text.partition("\n## ")[0]) :]
        text = re.sub(_LINK, lambda link: _find_page(f"../{link[1]}"), file.read_text()) + groups
    if page == app.config.root_doc:
        text += "".join(_make_toctree(*group) for group in _GROUP.findall(text))
    source[0] = re.sub(_NAMED, r"[](\1", text)  # the site shows the title there


def _find_page(target: str) -> str:
    """Find what a link of a page in docs/ leads to: a page of the site, or a file."""
    name = target.removeprefix("../")
    if name in _PAGES and name != target:
        return f"{_PAGES[name]}.md"
    return target.replace("../docs/", "")


def _make_toctree(caption: str, entries: str) -> str:
    lines = [f"{title} <{page}>" for title, page in _ENTRY.findall(entries)]
    return "\n".join(
        ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""]
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
