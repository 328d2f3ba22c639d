"""The pages of the service in a real browser: they ask for an account, and show who has one."""

import re

import mlflow
import pytest
from playwright.sync_api import Error, expect, sync_playwright

from tests.support.browser import NO_ASSISTANT, QUIET, find_chromium, patience
from tests.support.service import ADMIN, sign_in

pytestmark = [pytest.mark.service, pytest.mark.browser]


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, proxy):
    """Open a page as someone who types a name and a password into Chromium's dialog."""
    expect.set_options(timeout=patience())
    opened = []

    def visit(path, account=None):
        typed = account and dict(zip(("username", "password"), account, strict=True))
        context = chromium.new_context(http_credentials=typed, ignore_https_errors=True)
        opened.append(context)
        context.add_init_script(NO_ASSISTANT)
        page = context.new_page()
        page.set_default_timeout(patience())
        return page, page.goto(f"{proxy.uri}{path}")

    yield visit
    for context in opened:
        context.close()


@pytest.fixture
def experiment(service, people, monkeypatch):
    """The id of one of Ada's, with a run."""
    sign_in(monkeypatch, service, people["ada"])
    client = mlflow.MlflowClient(service.uri)
    made = client.create_experiment("seen")
    client.create_run(made, run_name="run of Ada")
    return made


@pytest.mark.parametrize("account", [None, ("ada", "the password of bob")])
def test_pages_show_nothing_without_an_account(visit, account):
    if account is None:  # Chromium then asks, and says so where nobody types
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            visit("/")
    else:
        page, answer = visit("/", account)
        assert answer.status == 401
        expect(page.get_by_text("You are not authenticated")).to_be_visible()


def test_who_signs_in_sees_runs_through_the_proxy(visit, people, experiment):
    page, answer = visit(f"/#/experiments/{experiment}/runs", people["bob"])

    assert answer.status == 200
    expect(page.get_by_text("run of Ada")).to_be_visible()


def test_admin_makes_an_account_in_the_browser(visit, proxy, service):
    page, _ = visit("/signup", ADMIN)
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.accept()))

    page.locator("input[name=username]").fill("erin")
    page.locator("input[name=password]").fill("the password of erin")
    page.locator("[type=submit]").click()
    page.wait_for_url(re.compile(rf"^{re.escape(proxy.uri)}/(#.*)?$"))

    assert said == ["Successfully signed up user: erin"]
    assert service.sql("SELECT is_admin FROM users WHERE username = 'erin'") == ["f"]
