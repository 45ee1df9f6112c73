"""Looks at the built site in a browser, on a wide and a narrow screen: `make docs-look`.

    python scripts/site_look.py [--chromium PATH]

For some pages it asks axe-core for faults of accessibility (contrast, names, order of headings and so on), checks that
nothing is wider than the screen, and that the Tab key reaches what can be clicked. Screenshots go into build/look. It
needs playwright, axe-playwright-python, and a Chromium: that of the system, or `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from served import served

ROOT = Path(__file__).parents[1]
SITE, LOOK = ROOT / "build" / "site", ROOT / "build" / "look"
SCREENS = {"wide": (1440, 900), "narrow": (390, 844)}
PAGES = ("", "concepts/", "recipes/", "faq/", "credit/", "evidence/", "configuration/", "troubleshooting/",
         "reference/pcm_rl/", "source/examples/first_steps.ipynb/")  # fmt: skip
SCHEMES = ("light", "dark")


def main() -> int:
    """Print every fault; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    LOOK.mkdir(parents=True, exist_ok=True)
    found = 0
    with served(str(SITE)) as address, sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for screen, (width, height) in SCREENS.items():
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                for path in PAGES:
                    page.goto(address + path, wait_until="networkidle")
                    name = f"{path.strip('/').replace('/', '-') or 'index'}-{screen}-{scheme}"
                    page.screenshot(path=LOOK / f"{name}.png")
                    for fault in faults(page):
                        found += 1
                        print(f"{name}: {fault}")
                page.close()
        browser.close()
    print(f"{len(PAGES)} pages, {len(SCREENS)} screens, {len(SCHEMES)} schemes: {found} faults; pictures in {LOOK}")
    return int(found > 0)


def faults(page: Page) -> Iterator[str]:
    """What is wrong with the page that is shown."""
    for violation in Axe().run(page).response["violations"]:
        where = "; ".join(str(node["target"][0]) for node in violation["nodes"][:3])
        yield f"{violation['id']} ({violation['impact']}), {len(violation['nodes'])} times: {where}"
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if wide > 0:
        yield f"{wide} pixels wider than the screen"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
    if len(reached) < 6:
        yield f"twelve Tabs reach {len(reached)} places"


if __name__ == "__main__":
    sys.exit(main())
