"""Takes the README's images of a report: the first screen, and the gallery.

python tests/report/screenshots.py OUTPUT docs/images
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]


def take(output: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
        page.goto((output.resolve() / "report" / "index.html").as_uri())
        page.screenshot(path=to / "report.png")
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        page.evaluate("document.querySelector('#images').scrollIntoView()")
        page.wait_for_timeout(1000)  # images are decoded as they come into view
        page.screenshot(path=to / "report-pictures.png", clip=_part(page))
        browser.close()


def _part(page) -> dict[str, float]:
    top = page.locator("#images").bounding_box()["y"]
    return {"x": 0, "y": max(0, top - 16), "width": 1280, "height": 480}


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
