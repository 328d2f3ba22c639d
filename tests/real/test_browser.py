"""What the links that are printed at a run's end and by `compare` show in a real browser."""

import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import expect

from pyclassify.cli.main import main
from tests.support.browser import find_chromium, mlflow_ui, visit
from tests.support.trainings import LINEAR, QUIET

pytestmark = pytest.mark.browser
SMALL = f"train --data=SyntheticDataModule {LINEAR} --max_epochs=2 {QUIET} --log_model=true"
SMALL += (
    " --trainer.log_every_n_steps=1 --data.train_size=400 --data.val_size=50 --data.test_size=100"
)
RUNS = ["--learning_rate=0.001", "--learning_rate=0.001 --seed=1", "--learning_rate=0.1 --seed=2"]


@pytest.fixture(scope="module")
def said(module_store, tmp_path_factory):
    """Three runs of two recipes: what each said, what `compare` said of them, and the runs."""
    find_chromium()
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = [listen(f"{SMALL} {more}") for more in RUNS]
        ids = [re.search(r"^run +(\w+)$", text, re.MULTILINE)[1] for text in trained]
        compared = listen(f"compare {' '.join(ids)}")
        runs = [module_store.get_run(each) for each in ids]
    return SimpleNamespace(folder=folder, trained=trained, compared=compared, runs=runs)


def listen(line):
    heard = StringIO()
    with redirect_stdout(heard):
        assert main(line.split()) == 0
    return heard.getvalue()


@pytest.fixture(scope="module")
def visitor(said):
    shots = os.environ.get("PYCLASSIFY_SCREENSHOTS")
    command = re.search("^look +(.*)$", said.trained[-1], re.MULTILINE)[1]
    with (
        mlflow_ui(command, said.folder) as address,
        visit(address, shots and Path(shots)) as visitor,
    ):
        yield visitor


def find_link(label, text):
    return re.search(rf"^{label} +(http.*)$", text, re.MULTILINE)[1]


def accuracies(runs):
    return [run.data.metrics["test_accuracy"] for run in runs]


def column(page, name):
    """A column's cells from top to bottom, as numbers."""
    cells = page.locator(f'[role=gridcell][col-id="{name}"]')
    expect(cells.first).to_be_visible()
    places = cells.evaluate_all("all => all.map(e => [e.getBoundingClientRect().y, e.innerText])")
    return [float(text.split()[0]) for _, text in sorted(places)]


def test_all_runs_are_listed_the_best_first_with_results_before_settings(said, visitor):
    page = visitor.page
    visitor.open(find_link("all runs", said.trained[0]), "matching runs")
    visitor.keep("runs")

    shown = column(page, "metrics.`test_accuracy`")
    headings = page.locator("[role=columnheader][col-id*='`']")
    page.set_viewport_size({"width": 3000, "height": 1000})  # what is off screen is not there
    expect(headings.filter(has_text="seed_everything")).to_be_visible()
    headings = headings.evaluate_all(
        "all => all.map(e => [e.getBoundingClientRect().x, e.innerText])"
    )
    page.set_viewport_size({"width": 1600, "height": 1000})

    assert shown == pytest.approx(sorted(accuracies(said.runs), reverse=True))
    names = [name for _, name in sorted(headings)]
    results = ["test_accuracy", "best_val_accuracy", "test_loss"]
    assert names[:5] == ["Run Name", "Models", *results]
    assert {"wall_seconds", "parameters", "model/learning_rate", "data/batch_size"} < set(names)


def test_model_of_the_best_run_is_registered_by_its_button_and_promoted(
    said, visitor, module_store
):
    page = visitor.page
    visitor.open(find_link("all runs", said.trained[0]), "matching runs")
    models = page.locator("[role=gridcell][col-id='attributes.`Models`']")
    expect(models).to_have_count(len(said.runs))
    places = models.evaluate_all("all => all.map(e => e.getBoundingClientRect().y)")
    link = models.nth(places.index(min(places))).get_by_role("link")
    page.goto(f"{visitor.address}/{link.get_attribute('href').lstrip('/')}")  # else in a new tab

    page.get_by_role("button", name="Register model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").click()
    page.get_by_text("Create New Model").last.click()
    dialog.get_by_placeholder("Input a model name").fill("shapes")
    dialog.get_by_role("button", name="Register", exact=True).click()
    expect(page.get_by_role("link", name="shapes")).to_be_visible()
    visitor.keep("registered")
    promoted = listen("promote shapes 1")

    assert promoted.startswith("shapes version 1 is champion")
    best = max(said.runs, key=lambda run: run.data.metrics["test_accuracy"])
    version = module_store.get_model_version_by_alias("shapes", "champion")
    assert version.run_id == best.info.run_id


def test_charts_are_bars_of_results_and_then_lines_of_the_training(said, visitor):
    page = visitor.page
    visitor.open(f"{find_link('all runs', said.trained[0])}&compareRunsMode=CHART", "matching runs")

    shown = sorted(f"{each:.2f}" for each in accuracies(said.runs))
    bars = page.locator(".js-plotly-plot .barlayer").first.locator(".point")
    expect(bars).to_have_count(len(shown))
    assert sorted(bars.all_text_contents()) == shown
    visitor.keep("charts")
    page.get_by_text("Training", exact=True).scroll_into_view_if_needed()
    expect(page.locator(".js-plotly-plot .scatterlayer .trace").first).to_be_visible()
    visitor.keep("training")


def test_recipes_are_groups_with_the_means_of_their_seeds(said, visitor):
    visitor.open(find_link("recipes", said.trained[0]), "matching runs")
    expect(visitor.page.get_by_text(re.compile("^Group: Linear-Synthetic "))).to_have_count(2)
    visitor.keep("recipes")

    first, second, other = accuracies(said.runs)
    mean = (first + second) / 2
    groups = [[mean, *sorted([first, second], reverse=True)], [other, other]]
    expected = [each for group in sorted(groups, reverse=True) for each in group]
    assert column(visitor.page, "metrics.`test_accuracy`") == pytest.approx(expected)


def test_page_of_a_run_tells_what_it_came_to(said, visitor):
    visitor.open(find_link("this run", said.trained[0]), "About this run")

    expect(visitor.page.get_by_text("Finished")).to_be_visible()
    expect(visitor.page.get_by_text("best_val_accuracy")).to_be_visible()
    expect(visitor.page.get_by_role("link", name="Model registry")).to_be_visible()
    visitor.keep("run")


def test_picture_and_table_of_a_run_are_shown_in_place(said, visitor):
    page = visitor.page
    visitor.open(find_link("this run", said.trained[0]), "About this run")
    page.get_by_role("tab", name="Artifacts").click()

    page.get_by_text("confusion_matrix.png").click()
    wait_for_pictures(page, 1)
    visitor.keep("confusion matrix")
    page.get_by_text("predictions.json").click()
    for heading in ("index", "label", "predicted", "probability"):
        expect(page.get_by_role("columnheader", name=heading)).to_be_visible()
    expect(page.get_by_text("hollow triangle").first).to_be_visible()
    visitor.keep("predictions")


def test_compared_runs_are_side_by_side_with_their_pictures(said, visitor):
    page = visitor.page
    (link,) = re.findall(r"^http.*$", said.compared, re.MULTILINE)
    visitor.open(link, "Parallel Coordinates")

    expect(page.get_by_text("Comparing 3 Runs")).to_be_visible()
    visitor.keep("compared")
    page.get_by_text("Show diff only").first.click()
    expect(page.get_by_text("data/batch_size", exact=True)).to_have_count(0)
    expect(page.get_by_text("model/learning_rate", exact=True).last).to_be_visible()
    page.get_by_text("confusion_matrix.png").first.dispatch_event("click")
    wait_for_pictures(page, 3)
    page.get_by_text("Artifacts", exact=True).last.evaluate("e => e.scrollIntoView()")
    visitor.keep("compared pictures")


def wait_for_pictures(page, count):
    """Wait for so many pictures that were fetched and drawn."""
    drawn = "all => new Set([...all].filter(e => e.naturalWidth > 300).map(e => e.src)).size"
    page.wait_for_function(f"({drawn})(document.images) === {count}")
