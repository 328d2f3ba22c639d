"""Pages of a demo's runs in `mlflow ui`, each as a screenshot."""

import re

from playwright.sync_api import expect

from benchmarks.parts.demo import find_link

# The assistant's button covers what is below it.
_NO_BUTTON = "[data-assistant-ui] { display: none !important; }"
_SIDEBAR_WIDTH = 198
_TABLE_WIDTH = 1230


class MlflowPages:
    """The pages.

    Args:
        demo: The demo.
        visitor: A visitor of its server.
    """

    def __init__(self, demo, visitor):
        self.demo, self.visitor, self.page = demo, visitor, visitor.page

    def take_run(self, output):
        """Take the page of a run, from its description on."""
        self._open(find_link("this run", output), "About this run", 880, 1205)
        self.page.get_by_text("Show more").first.click()
        self.page.wait_for_function("[...document.images].some(e => e.naturalWidth > 300)")
        heading = self.page.get_by_text("Description", exact=True).first
        heading.evaluate("e => e.scrollIntoView()")
        return self._take()

    def take_table(self, output):
        """Take the table of all runs, the best first."""
        self._open(find_link("all runs", output), "matching runs", _TABLE_WIDTH, 450)
        expect(self.page.locator('[role=gridcell][col-id*="`"]').first).to_be_visible()
        close = self.page.get_by_text("Exit shared view").locator("xpath=following::button[1]")
        close.click()
        return self._take()

    def take_comparison(self, output):
        """Take the page that compares runs: what differs of parameters and metrics, no chart."""
        (link,) = re.findall(r"^http.*$", output, re.MULTILINE)
        self._open(link, "Parallel Coordinates", 880, 1418)
        self.page.get_by_text("Visualizations", exact=True).click()
        expect(self.page.get_by_text("Parallel Coordinates").first).to_be_hidden()
        for section in range(2):
            self.page.get_by_text("Show diff only").nth(section).click()
        heading = self.page.get_by_text(re.compile("^Comparing [0-9]+ Runs"))
        heading.evaluate("e => e.scrollIntoView({block: 'end'})")
        return self._take()

    def _open(self, link, text, width, height):
        """Open a page with room for its content, beside the bar on the left."""
        size = {"width": width + _SIDEBAR_WIDTH + 8, "height": height}
        self.page.set_viewport_size(size)
        self.visitor.open(link, text)
        self.page.add_style_tag(content=_NO_BUTTON)

    def _take(self):
        """Take the page without the bar on its left."""
        self.page.wait_for_timeout(2000)  # charts grow, messages go
        size = self.page.viewport_size
        area = {"x": _SIDEBAR_WIDTH, "y": 8, "width": size["width"] - _SIDEBAR_WIDTH - 8}
        return self.page.screenshot(clip={**area, "height": size["height"] - 16})
