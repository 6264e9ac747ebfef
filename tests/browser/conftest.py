"""A real JupyterLab, a real Chromium, and a record of all that they ask for."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import sync_playwright

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


@pytest.fixture
def page(browser):
    """Open a page; afterwards fail on a JavaScript error or a request that left."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    errors, hosts = [], set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda line: errors.append(line.text) if line.type == "error" else None,
    )
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    page.on("websocket", lambda socket: hosts.add(urlparse(socket.url).hostname))
    yield page
    context.close()
    assert not errors, errors
    assert hosts <= LOOPBACK, f"requests left this machine: {hosts - LOOPBACK}"


def serve(command, folder, ready, environment):
    """Start a server on a free port of the loopback address and wait for its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", *command(port)],
        cwd=folder,
        env=os.environ | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(address + ready, timeout=5).close()
            return process, address
        except OSError:
            time.sleep(0.1)
        if process.poll() is not None:
            break
    process.terminate()
    raise AssertionError((folder / "server.log").read_text())


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


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Start JupyterLab on a copy of the notebooks; give its folder and an opener."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    token = secrets.token_hex()

    def command(port):
        return (
            "jupyterlab --no-browser --allow-root --expose-app-in-browser "
            f"--ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 "
            f"--ServerApp.token={token}"
        ).split()

    process, address = serve(
        command, folder, f"/api/status?token={token}", private(folder / "private")
    )
    yield Lab(folder / "notebooks", address, token)
    process.terminate()
    process.wait()


IDLE = """
() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === "idle"
"""
READY = """
(name) => window.jupyterapp?.shell.currentWidget?.context?.path.endsWith(name)
  && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === "idle"
"""


class Lab:
    """Opens a notebook in a page, runs it and reads its cells."""

    def __init__(self, folder, address, token):
        self.folder, self.address, self.token = folder, address, token

    def run(self, page, name):
        """Run all cells of a notebook; give the cells as the browser has them."""
        page.goto(f"{self.address}/lab/tree/notebooks/{name}?token={self.token}&reset")
        page.wait_for_function(READY, arg=name, timeout=60_000)
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(IDLE, timeout=180_000)
        cells = page.evaluate("jupyterapp.shell.currentWidget.context.model.toJSON()")
        return cells["cells"]

    def close(self, page):
        """Stop the kernel, for its memory."""
        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@pytest.fixture
def shoot(page):
    """Keep a screenshot for somebody to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def save(name, what=None):
        (what or page).screenshot(path=SCREENSHOTS / f"{name}.png")

    return save


@pytest.fixture(scope="session")
def latencies():
    """Collect medians, and print them when all is done."""
    rows = {}
    yield rows
    print("\n\nlatency, median ms")
    for name, value in rows.items():
        print(f"{name:58} {value:6.1f}")
