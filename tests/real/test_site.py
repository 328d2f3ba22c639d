"""The docs site: it builds without a warning, and its pages ask nothing of other machines."""

import re
import shutil
from contextlib import suppress

import pytest
from playwright.sync_api import expect

import pyclassify
from pyclassify.cli.help import _EXIT_CODES, COMMANDS
from pyclassify.cli.main import main
from pyclassify.slurm.cli import _HELP
from tests.support import site as sites
from tests.support.browser import visit
from tests.support.phrases import mentions
from tests.support.processes import ROOT

# What a page of HTML or CSS loads without a click.
_LOADED = re.compile(
    r"""<(?:link|script|img|iframe|source|video|object)\b[^>]*\s(?:src|srcset|href|data)=["']"""
    r"""\s*(?:https?:)?//[^>]*>|@import[^;]*//[^;]*;|url\(\s*["']?(?:https?:)?//[^)]*\)"""
)


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    return sites.build_once()


@pytest.fixture(scope="module")
def address(site):
    with sites.serve(site) as address:
        yield address


@pytest.fixture
def page(address):
    """A browser's page; what it asks of other machines, and errors, are in `page.problems`."""
    with visit(address) as visitor:
        page = visitor.page
        page.problems = []
        page.requested = []
        page.on("request", lambda request: note_request(page, request.url, address))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("response", lambda r: r.status < 400 or page.problems.append(f"{r.status} {r.url}"))
        yield page


def note_request(page, url, address):
    page.requested.append(url)
    if not url.startswith((address, "data:", "blob:", "about:")):
        page.problems.append(url)


def test_site_of_the_docs_builds_without_a_warning(site):
    assert (site / "warnings").read_text() == ""
    built = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"search"} <= built


def test_build_with_broken_links_and_lost_pages_fails_and_names_them(tmp_path):
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "docs" / name, tmp_path / "docs" / name)
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs")
    (tmp_path / "README.md").write_text("# Home\n\n[one](docs/one.md#no-such-heading)\n")
    (tmp_path / "docs/index.md").write_text("# Pages\n\n## Train\n\n- [One](one.md): a page\n")
    (tmp_path / "docs/one.md").write_text("# One\n\n[two](no-such-page.md)\n")
    (tmp_path / "docs/lost.md").write_text("# A page that the index lacks\n")

    built = sites.build(tmp_path / "docs", tmp_path / "built")

    assert built.returncode == 1
    assert mentions(built.stderr, "no-such-heading", "no-such-page.md", "lost.md", "toctree")


def test_built_files_name_nothing_of_other_machines_to_load(site):
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    found = {path.name: _LOADED.findall(path.read_text()) for path in files}

    assert len(files) > 20
    assert {name: loaded for name, loaded in found.items() if loaded} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<link rel="stylesheet" href="https://fonts.example/a.css">',
        '<script defer src="//cdn.example/a.js"></script>',
        "<img alt='' src='http://example/a.png'>",
        "@import 'https://fonts.example/a.css';",
        "src: url(https://fonts.example/a.woff)",
    ],
)
def test_check_of_built_files_finds_what_is_loaded_from_other_machines(text):
    assert _LOADED.search(text)


def test_api_page_has_every_public_class_with_its_arguments(site):
    text = (site / "api.html").read_text()

    documented = set(re.findall(r'id="pyclassify\.(\w+)"', text))
    assert documented == set(pyclassify.__all__)
    assert mentions(text, "label_smoothing", "configure_optimizers", "warmup_ratio")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"slurm {name}" for name in _HELP)])
def test_page_of_commands_has_a_command_with_the_options_of_its_help(command, site, capsys):
    with suppress(SystemExit):
        main([*command.split(), "--help"])
    options = re.findall(r"^  (?:-\w, )?--([\w.-]+)", capsys.readouterr().out, re.MULTILINE)

    anchors = set(re.findall(r'id="([^"]+)"', (site / "commands.html").read_text()))

    name = f"pyclassify-{command.replace(' ', '-')}"
    assert "help" in options
    assert {name, *(f"cmdoption-{name}-{option}" for option in options)} <= anchors


def test_page_of_commands_has_the_exit_codes_of_the_help(site):
    rows = [f"<td><p>{code}</p></td>\n<td><p>{text}</p></td>" for code, text in _EXIT_CODES.items()]
    assert mentions((site / "commands.html").read_text(), *rows)


@pytest.mark.browser
def test_every_page_is_drawn_without_a_request_to_another_machine(site, address, page):
    names = sorted(path.relative_to(site) for path in site.rglob("*.html"))
    for name in names:
        page.goto(f"{address}/{name}", wait_until="load")
        diagrams = page.locator("pre.mermaid")
        expect(page.locator("pre.mermaid > svg")).to_have_count(diagrams.count())
        expect(page.get_by_text("Syntax error in text")).to_have_count(0)
        loaded = any("mermaid.tiny.js" in url for url in page.requested)
        assert loaded == bool(diagrams.count()), name
        page.requested.clear()

    assert page.problems == []


@pytest.mark.browser
def test_request_of_a_page_to_another_machine_is_noticed(address, page):
    page.goto(f"{address}/index.html")
    with page.expect_event("requestfailed"):
        page.evaluate("document.body.append(Object.assign(new Image(), {src: '//0.0.0.0:9/a'}))")

    assert page.problems == ["http://0.0.0.0:9/a"]


@pytest.mark.browser
def test_diagrams_follow_the_theme_that_a_reader_chooses(address, page):
    page.goto(f"{address}/architecture.html")
    svg = page.locator("pre.mermaid > svg").first
    expect(svg).to_be_visible()
    box = "e => getComputedStyle(e.querySelector('.node rect')).fill"
    light = svg.evaluate(box)

    page.evaluate("document.body.dataset.theme = 'dark'")

    page.wait_for_function(
        f"light => ({box})(document.querySelector('pre.mermaid')) != light", arg=light
    )
    assert page.problems == []


@pytest.mark.browser
def test_search_for_requeue_finds_the_page_of_slurm(address, page):
    page.goto(f"{address}/index.html")
    page.get_by_placeholder("Search").first.fill("requeue")
    page.keyboard.press("Enter")

    results = page.locator("#search-results a")
    expect(results.filter(has_text="SLURM").first).to_be_visible()
    targets = results.evaluate_all("all => all.map(e => e.getAttribute('href'))")
    assert any(target.startswith("slurm") for target in targets)
    assert page.problems == []
