"""A real JupyterLab, a real Chromium, and a record of all that they ask for."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost", None}  # None: blob: and data: have no host


@pytest.fixture(scope="session")
def browser():
    """Start Chromium; names of the network do not resolve in it."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = shutil.which("chromium") or shutil.which("google-chrome") or own
        if not Path(path).exists():
            pytest.fail(
                "no Chromium: `apt-get install chromium` or "
                "`python -m playwright install chromium`"
            )
        browser = playwright.chromium.launch(
            executable_path=path, args=[*FLAGS, OFFLINE]
        )
        yield browser
        browser.close()


def watch(page):
    """Record what a page asks for and what goes wrong; give who judges it."""
    errors, asked = [], set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda line: errors.append(line.text) if line.type == "error" else None,
    )
    page.on("request", lambda request: asked.add(request.url))
    page.on("websocket", lambda socket: asked.add(socket.url))

    def judge():
        away = [url for url in asked if urlparse(url).hostname not in LOOPBACK]
        assert asked and not away, f"requests left this machine: {away}"
        assert not errors, errors

    return judge


@pytest.fixture(scope="module")
def page(browser):
    """Open a page; afterwards fail on a JavaScript error or a request that left."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    judge = watch(page)
    yield page
    context.close()
    judge()


def serve(command, folder, environment):
    """Start a server on a free port of the loopback address; give both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, f"--port={port}", "--no-browser"],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    process.terminate()
    raise AssertionError(f"no answer within a minute from {command}")


def private(folder):
    """Settings of Jupyter that are nobody's but this test's."""
    config = folder / "config"
    (config / "labconfig").mkdir(parents=True)
    (config / "labconfig" / "page_config.json").write_text(
        json.dumps(
            {
                "disabledExtensions": {
                    "@jupyterlab/apputils-extension:announcements": True
                }
            }
        )
    )
    places = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    return {f"JUPYTER_{name}_DIR": str(folder / part) for name, part in places.items()}


READY = """
(name) => jupyterapp.shell.currentWidget?.context?.path.endsWith(name)
  && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === "idle"
"""
RUN = """async () => {
  await jupyterapp.commands.execute("notebook:clear-all-cell-outputs");
  jupyterapp.commands.execute("notebook:run-all-cells").catch(() => {});
}"""
CELLS = "jupyterapp.shell.currentWidget.context.model.toJSON().cells"
# run-all-cells returns at the first error, also at one that a tag announces: so count
DONE = f"""
() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === "idle"
  && {CELLS}.every((cell) => cell.cell_type !== "code" || cell.execution_count)
"""


class Lab:
    """JupyterLab in a page: opens a notebook, runs it and reads its cells."""

    def __init__(self, page, folder):
        self.page, self.folder = page, folder

    def run(self, name):
        """Run all cells of a notebook; give the cells as the browser has them."""
        self.page.evaluate(
            "path => void jupyterapp.commands.execute('docmanager:open', { path })",
            f"notebooks/{name}",
        )
        self.page.wait_for_function(READY, arg=name, timeout=120_000)
        self.page.evaluate(RUN)
        with suppress(TimeoutError):  # the caller finds which cells did not run
            self.page.wait_for_function(DONE, timeout=300_000)
        return self.page.evaluate(CELLS)

    def close(self):
        """Save, stop the kernel for its memory, and close the notebook."""
        self.page.evaluate(
            """async () => {
              const { context, sessionContext } = jupyterapp.shell.currentWidget;
              await context.save();
              await sessionContext.shutdown();
              jupyterapp.shell.currentWidget.close();
            }"""
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Start JupyterLab on a copy of the notebooks; give its folder and address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    token = secrets.token_hex()
    command = ["jupyterlab", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--ServerApp.token={token}"]
    process, address = serve(command, folder, private(folder / "private"))
    yield folder / "notebooks", f"{address}/lab?token={token}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def lab(server, page):
    """Open JupyterLab."""
    folder, address = server
    page.goto(address, timeout=60_000)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget", timeout=60_000)
    return Lab(page, folder)


@pytest.fixture
def shoot():
    """Keep a screenshot for somebody to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def save(name, what):
        what.screenshot(path=SCREENSHOTS / f"{name}.png")

    return save


@pytest.fixture(scope="session")
def voila(tmp_path_factory):
    """Start the app; give its address."""
    folder = tmp_path_factory.mktemp("voila")
    app = ROOT / "app"
    environment = private(folder) | {"JUPYTER_PATH": str(app)}
    process, address = serve(["voila", "sliders.ipynb"], app, environment)
    yield address
    process.terminate()
    process.wait()


@pytest.fixture
def drag(page):
    """Pull a slider's thumb to a fraction of its length, with the mouse."""

    def pull(slider, to, steps=12):
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        low, high, value = slider.evaluate("(s) => [s.min, s.max, s.value].map(Number)")
        y = box["y"] + box["height"] / 2
        ends = [
            box["x"] + 8 + part * (box["width"] - 16)
            for part in ((value - low) / (high - low), to)
        ]
        page.mouse.move(ends[0], y)
        page.mouse.down()
        page.mouse.move(ends[1], y, steps=steps)
        page.mouse.up()

    return pull


@pytest.fixture(scope="session")
def latencies():
    """Collect medians in ms; they are kept beside the screenshots, and printed."""
    rows = {}
    yield rows
    lines = [f"{name:60} {value:6.1f} ms" for name, value in rows.items()]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / "latency.txt").write_text("\n".join(lines) + "\n")
    print("", *lines, sep="\n")
