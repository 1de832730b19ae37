"""In a real browser: every notebook in JupyterLab, the explorer by mouse, and a study's pages."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from lab import (
    NO_CHROMIUM,
    NOTEBOOK,
    Watched,
    browser,
    chromium,
    copied_notebooks,
    jupyterlab,
    open_notebook,
    picture,
    run_all,
    shut_down,
    watched,
)
from matplotlib.colors import to_rgb
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from handclip_lib import params
from handclip_lib.params import ROOT
from handclip_lib.report.canvas import BAD, GOOD

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM),
]

EXPLORER = "07_explorer"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
REPORTED = "palmar_r"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def desktop(chrome: Browser) -> Iterator[BrowserContext]:
    with chrome.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that JupyterLab shows: the notebooks, on study `smoke`."""
    return copied_notebooks(tmp_path_factory.mktemp("notebooks"))


@pytest.fixture(scope="module")
def address(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with jupyterlab(served, tmp_path_factory.mktemp("jupyter")) as found:
        yield found


@contextmanager
def ran(desktop: BrowserContext, address: str, name: str) -> Iterator[Page]:
    """A notebook whose cells have all been run, without an error and without a request outside."""
    with watched(desktop) as seen:
        open_notebook(seen.page, address, name)
        cells = run_all(seen.page)
        try:
            picture(seen.page, name, NOTEBOOK)
            assert not failures(cells), "\n".join(failures(cells))
            yield seen.page
        finally:
            shut_down(seen.page)
        undisturbed(seen)
        shown = seen.page.locator(NOTEBOOK).inner_text()
        assert "Error displaying widget" not in shown and "Loading widget" not in shown


def failures(cells: list[dict[str, Any]]) -> list[str]:
    """What went wrong: an error, a figure that shows as words, a cell that has not been run."""
    found = []
    for cell in cells:
        where = "".join(cell["source"])
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"{output['ename']}: {output['evalue']}\n  in\n{where}")
            shown = output.get("data", {})
            if "<Figure" in "".join(shown.get("text/plain", "")) and "image/png" not in shown:
                found.append(f"a figure shows as words\n  in\n{where}")
        if where and not cell["execution_count"]:
            found.append(f"not run:\n{where}")
    return found


def undisturbed(seen: Watched) -> None:
    assert not seen.outside, f"asked other hosts: {seen.outside}"
    assert not seen.errors, f"the browser's console: {seen.errors}"


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != EXPLORER])
def test_notebook_runs_in_jupyterlab(name: str, desktop: BrowserContext, address: str) -> None:
    with ran(desktop, address, name):
        pass


def test_a_failing_cell_and_a_request_outside_are_noticed(
    desktop: BrowserContext, address: str, served: Path
) -> None:
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            nbformat.v4.new_code_cell("import urllib.request\nfrom IPython.display import HTML"),
            nbformat.v4.new_code_cell("HTML('<img src=\"http://example.org/hand.png\">')"),
            nbformat.v4.new_code_cell("display({'text/plain': '<Figure size 1x1>'}, raw=True)"),
            nbformat.v4.new_code_cell("urllib.request.urlopen('http://example.org')"),
            nbformat.v4.new_code_cell("'never'"),
        ],
    )
    nbformat.write(book, served / "broken.ipynb")
    with watched(desktop) as seen:
        open_notebook(seen.page, address, "broken")
        found = failures(run_all(seen.page))
        shut_down(seen.page)
    assert [line.splitlines()[0] for line in found] == [
        "a figure shows as words",
        "URLError: <urlopen error [Errno 111] Connection refused>",
        "not run:",
    ]
    assert set(seen.outside) == {"http://example.org/hand.png"} and seen.errors


# -- the explorer ---------------------------------------------------------------------------------


def drag(page: Page, left: float, right: float) -> None:
    """Draw a line on the explorer's plane with the mouse, as high as the plane.

    left, right: shares of the canvas's width; from 0.09 to 0.85 is inside the frame.
    """
    canvas = page.locator(".handclip-plane canvas").last
    box = in_view(page, canvas)
    corners = [(left, 0.07), (right, 0.07), (right, 0.94), (left, 0.94), (left, 0.07)]
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=8)
    page.mouse.up()


def in_view(page: Page, place: Locator) -> dict[str, float]:
    """Scroll to a place and wait until it stays there; its box in the window."""
    before = None
    for _ in range(50):
        place.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        box = place.bounding_box()
        if box and box == before and box["y"] >= 0:
            return dict(box)
        before = box
    raise AssertionError(f"{place} does not come to rest: {before}")


def chosen(page: Page, but: int = 0) -> int:
    """How many photographs the explorer says it took, once it says other than `but`."""
    said = page.locator(".handclip-message")
    for _ in range(100):
        found = re.match(r"(\d+) photographs? of \d+ persons?", said.inner_text())
        if found and int(found[1]) != but:
            return int(found[1])
        page.wait_for_timeout(200)
    raise AssertionError(f"the explorer says: {said.inner_text()}")


def frames(page: Page, css: str) -> dict[str, int]:
    """Pixels in the colours of a right and of a wrong answer, in a picture that is shown."""
    place = page.locator(css)
    place.wait_for(state="visible")
    data = place.evaluate(
        "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"
    )
    shot = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    wanted = {"right": to_rgb(GOOD), "wrong": to_rgb(BAD)}
    near = {n: abs(shot - 255 * np.array(colour)).max(axis=2) < 2 for n, colour in wanted.items()}
    return {name: int(pixels.sum()) for name, pixels in near.items()}


@pytest.mark.skipif(EXPLORER not in NOTEBOOKS, reason="there is no explorer")
def test_explorer_by_mouse(desktop: BrowserContext, address: str) -> None:
    """A line around points gives their photographs; a click ranks the gallery by two models."""
    with ran(desktop, address, EXPLORER) as page:
        thumbs = page.locator(".handclip-thumb")
        drag(page, 0.09, 0.85)
        everything = chosen(page)
        assert thumbs.count() == everything > 10
        drag(page, 0.09, 0.45)
        some = chosen(page, but=everything)
        assert thumbs.count() == some < everything
        assert not page.locator(".handclip-answer").is_visible()
        thumbs.first.click()
        for css in (".handclip-answer", ".handclip-beside-answer"):
            found = frames(page, css)
            assert min(found.values()) > 100, (css, found)
        assert page.locator(".handclip-asked").count() == 1
        picture(page, f"{EXPLORER}_mouse", NOTEBOOK)
        root = params.resolve(params.load(study="smoke").data.root)
        with page.expect_file_chooser() as asked:
            page.locator(".handclip-upload").click()
        asked.value.set_files(min((root / "Hands").glob("*.jpg")))
        page.get_by_text("your photograph:").wait_for()
        unknown = frames(page, ".handclip-answer")
        assert max(unknown.values()) < 20, f"nobody knows whose hand it is: {unknown}"
        assert page.locator(".handclip-error").count() == 0
        picture(page, f"{EXPLORER}_own", NOTEBOOK)


# -- the pages of a study -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of study `smoke`, whose index shows a run with a report at least."""
    home = tmp_path_factory.mktemp("elsewhere")
    command = f"handclip_lib.cli run 01_baseline --study smoke --aspect {REPORTED}"
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return Path(os.environ["HANDCLIP_REPORTS"], "smoke")


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_pages_of_a_study(device: str, study: Path, chrome: Browser) -> None:
    """Nothing is wider than the window, nothing is asked elsewhere, and every link leads on."""
    screen: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
    if device == "phone":
        screen = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with chrome.new_context(**screen) as context, watched(context) as seen:
        for name in ("index.html", f"seed0/{REPORTED}/01_baseline/report.html"):
            seen.page.goto((study / name).as_uri())
            picture(seen.page, f"{Path(name).stem}_{device}")
            width = seen.page.evaluate("document.documentElement.scrollWidth")
            assert width <= screen["viewport"]["width"], f"{name} is {width} px wide"
            undisturbed(seen)
            hrefs = seen.page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
            files = {href.partition("#")[0] for href in hrefs if href.startswith("file:")}
            lost = [f for f in files if not Path(f.removeprefix("file://")).exists()]
            assert not lost, f"{name} links to nothing: {lost}"
