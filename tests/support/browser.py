"""`mlflow ui` as a run's summary says to start it, and a browser to look at it with."""

import os
import shlex
import shutil
import subprocess
from contextlib import contextmanager

from playwright.sync_api import expect, sync_playwright

from pyclassify.tracking.ui import LOCAL_SERVER
from tests.support.ports import free_port
from tests.support.required import lack
from tests.support.service import is_up, write_forking_programs
from tests.support.waiting import scale, wait_until

SECONDS = 60  # for what a page shows, on a quiet machine
SIZE = {"width": 1600, "height": 1000}

# Nothing but the pages themselves is asked of the network.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
QUIET += ["--no-first-run", "--no-sandbox", "--disable-gpu", "--disable-quic"]

# The assistant's panel, which opens itself on the first page of a newcomer.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


def find_chromium():
    """Chromium of the machine's packages; CI must have it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        lack(f"no browser: none of {', '.join(names)} is installed")
    return path


@contextmanager
def mlflow_ui(command, folder):
    """Run a command that starts `mlflow ui`, on a free port; its address."""
    port = free_port()
    given = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = write_forking_programs(folder / "bin")
    log = folder / "mlflow-ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["env", *shlex.split(command), "--port", str(port)],
            cwd=folder,
            env={**given, "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"

        def is_there():
            assert server.poll() is None, log.read_text()
            return is_up(f"{address}/health")

        wait_until(is_there, f"an answer of {address}")
        yield address
    finally:
        server.terminate()  # which its helpers follow, as they don't after SIGINT
        server.wait(scale(SECONDS))


def patience():
    """Milliseconds that a page may take to show what is waited for."""
    return 1000 * scale(SECONDS)


class Visitor:
    """Opens printed links, and keeps a picture of what is there.

    Args:
        page: Playwright's page.
        address: Where the server is that the links mean.
        folder: For the pictures; without it none are made.
    """

    def __init__(self, page, address, folder):
        self.page, self.address, self.folder = page, address, folder

    def open(self, link, text):
        """Open a link and wait for a text."""
        self.page.goto("about:blank")  # or else only the part after # would change
        self.page.goto(link.replace(LOCAL_SERVER, self.address))
        expect(self.page.get_by_text(text).first).to_be_visible()

    def keep(self, name):
        """Keep a picture, once charts have grown and messages have come."""
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=self.folder / f"{name}.png")


@contextmanager
def visit(address, folder=None, **options):
    """A visitor of a server, with options of Playwright's for the page."""
    expect.set_options(timeout=patience())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=QUIET)
        page = browser.new_page(**{"viewport": SIZE, **options})
        page.set_default_timeout(patience())
        page.add_init_script(NO_ASSISTANT)
        yield Visitor(page, address, folder)
        browser.close()
