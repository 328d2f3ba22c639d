"""The pages of the documentation: what they link to exists, and no page is long."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
MAX_LINES = 250
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def list_anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings(page):
    targets = _LINK.findall(_CODE.sub("", page.read_text()))
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in list_anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    names = re.findall(r"`((?:(?:configs|deploy|tests|benchmarks)/|slurm/\w+\.py)[\w./-]*)`", text)
    names += [f"benchmarks/{name}.py" for name in re.findall(r"-m benchmarks\.(\w+)", text)]
    for name in names:  # architecture.md names modules from the package on
        assert (ROOT / name).exists() or (ROOT / "pyclassify" / name).exists(), name


def test_readme_is_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_page_of_the_docs_is_not_long(page):
    assert len(page.read_text().splitlines()) <= MAX_LINES


def test_index_lists_every_page_of_the_docs_once():
    listed = re.findall(r"^- \[[^\]]+\]\((\S+\.md)\): ", (ROOT / "docs/index.md").read_text(), re.M)
    assert sorted([*listed, "index.md"]) == [page.name for page in DOCS]


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_issue_form_has_labeled_fields_with_ids_of_their_own(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())

    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    assert {field["type"] for field in form["body"]} <= {"textarea", "dropdown"}
    assert all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
