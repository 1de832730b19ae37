"""JupyterLab and a headless Chromium that drives it: what the browser tests share."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from handclip_lib.params import ROOT

PICTURES = ROOT / "build" / "browser"  # one screenshot a page, to be looked at
NO_CHROMIUM = "no Chromium to drive; Debian: apt-get install chromium"
# Nothing is fetched behind a page's back, and no name but the server's is ever looked up.
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
_START_S, _RUN_S = 120, 600
_TOKEN = "browser-tests"
_PIECE = 2000  # pixels
_SEEN = """(name) => {
    const e = document.querySelector(name), box = e.getBoundingClientRect();
    const place = name === 'html' ? {x: 0, y: 0, width: innerWidth, height: innerHeight}
        : {x: box.x, y: box.y, width: e.clientWidth, height: e.clientHeight};
    const last = [...e.querySelectorAll('.jp-Cell')].at(-1);  // below it a notebook has room
    const end = last ? last.getBoundingClientRect().bottom - box.y + e.scrollTop + 20 : Infinity;
    return {...place, top: e.scrollTop, all: Math.min(end, e.scrollHeight)};
}"""
NOTEBOOK = ".jp-NotebookPanel .jp-WindowedPanel-outer"  # what scrolls


def chromium() -> str | None:
    """The browser's path, under any of the names it is installed by."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@dataclass
class Watched:
    """An open page with what it asked for elsewhere and what went wrong in it."""

    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium(), args=list(_FLAGS)) as started,
    ):
        yield started


@contextmanager
def watched(context: BrowserContext) -> Iterator[Watched]:
    """A new page whose requests to other hosts, console errors and exceptions are kept."""
    seen = Watched(context.new_page())

    def asked(request: Request) -> None:
        if not re.match(r"(http://127\.0\.0\.1[:/]|data:|blob:|file:)", request.url):
            seen.outside.append(request.url)

    seen.page.on("request", asked)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("console", lambda m: m.type == "error" and seen.errors.append(m.text))
    try:
        yield seen
    finally:
        seen.page.close()


@contextmanager
def jupyterlab(notebooks: Path, home: Path) -> Iterator[str]:
    """JupyterLab on a folder of notebooks, with all of its settings in `home`; its address."""
    folders = {n: home / n for n in ("config", "data", "runtime", "settings", "workspaces")}
    _configure(folders["config"], notebooks)
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    own = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    own |= dict.fromkeys(proxies, "http://127.0.0.1:9")  # a kernel that asks elsewhere fails
    env = own | {
        "NO_PROXY": "127.0.0.1,localhost",
        "JUPYTER_CONFIG_DIR": str(folders["config"]),
        "JUPYTER_DATA_DIR": str(folders["data"]),
        "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
        "JUPYTERLAB_SETTINGS_DIR": str(folders["settings"]),
        "JUPYTERLAB_WORKSPACES_DIR": str(folders["workspaces"]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"],
            cwd=home,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _address(server, folders["runtime"], home / "server.log")
        finally:
            server.terminate()  # ends the kernels, too
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def copied_notebooks(folder: Path) -> Path:
    """The numbered notebooks as they are, but for the study that their parameters cell names."""
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
        cell.source, changed = re.subn(r'(study: str = )"demo"', r'\1"smoke"', cell.source)
        assert changed == 1, f"{path.name}: the parameters cell names no study"
        nbformat.write(book, folder / path.name)
    return folder


def open_notebook(page: Page, address: str, name: str) -> None:
    """Open a notebook as a user would and wait until its kernel can be asked."""
    page.goto(f"{address}lab/tree/{name}.ipynb?reset&token={_TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=_START_S * 1000)
    page.wait_for_function(
        "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
        "?.connectionStatus === 'connected'",
        timeout=_START_S * 1000,
    )


def run_all(page: Page) -> list[dict[str, Any]]:
    """Run all cells and wait for the end; the code cells as nbformat has them."""
    page.evaluate(
        "() => { window.ended = undefined;"
        " jupyterapp.commands.execute('notebook:run-all-cells')"
        ".then(() => { window.ended = true; }, e => { window.ended = String(e); }); }"
    )
    page.wait_for_function("() => window.ended !== undefined", timeout=_RUN_S * 1000)
    cells: list[dict[str, Any]] = page.evaluate(
        "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells"
    )
    return [cell for cell in cells if cell["cell_type"] == "code"]


def shut_down(page: Page) -> None:
    """End the notebook's kernel, which holds as much memory as a run."""
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def picture(page: Page, name: str, scroller: str = "html") -> Path:
    """A screenshot of all that can be scrolled to, `name`.png in the build folder.

    Taken in pieces: Chromium draws no more than 16,384 pixels at once, and a notebook measures
    its cells when they come into view.
    """
    before = page.viewport_size or {}
    page.set_viewport_size({"width": before["width"], "height": _PIECE})
    pieces: list[Image.Image] = []
    taken, rest = 0, True
    while rest:
        page.evaluate(f"document.querySelector('{scroller}').scrollTop = {taken}")
        page.wait_for_timeout(300)
        seen = page.evaluate(_SEEN, scroller)
        clip = {key: seen[key] for key in ("x", "y", "width", "height")}
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip)))
        dense = shot.height / clip["height"]
        end = min(seen["top"] + clip["height"], seen["all"])
        rows = [round((y - seen["top"]) * dense) for y in (taken, end)]
        pieces.append(shot.crop((0, rows[0], shot.width, rows[1])))
        taken = end
        rest = taken < seen["all"] - 1 and len(pieces) < 20
    page.set_viewport_size(before)
    whole = Image.new("RGB", (pieces[0].width, sum(piece.height for piece in pieces)))
    for number, piece in enumerate(pieces):
        whole.paste(piece, (0, sum(above.height for above in pieces[:number])))
    PICTURES.mkdir(parents=True, exist_ok=True)
    whole.save(PICTURES / f"{name}.png")
    return PICTURES / f"{name}.png"


def _configure(folder: Path, notebooks: Path) -> None:
    """What a user would have to click away is off, and the page's own application is reachable."""
    told = {
        "ServerApp": {"root_dir": str(notebooks), "ip": "127.0.0.1", "port": 0},
        "IdentityProvider": {"token": _TOKEN},
        "LabApp": {"expose_app_in_browser": True},
    }
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "labconfig").mkdir(parents=True)
    (folder / "jupyter_lab_config.json").write_text(json.dumps(told))
    (folder / "labconfig" / "page_config.json").write_text(json.dumps(news))


def _address(server: "subprocess.Popen[bytes]", runtime: Path, log: Path) -> str:
    """Where the server answers: it says so in a file when it does."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            if text := path.read_text():
                return str(json.loads(text)["url"])
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not start:\n{log.read_text()[-3000:]}")
