"""Take the README's pictures: the real sliders in the real browser.

python tools/film_widgets.py

Writes docs/sliders.gif, the sliders app while a rule and a plane are dragged (2 MB at
most), and docs/jupyterlab.png, notebook 08 in JupyterLab.
"""

import io
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from conftest import FLAGS, OFFLINE, Lab, private, serve  # noqa: E402

WIDTH = 560  # pixels of the film
TOPS = (20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 36, 32, 28, 24, 20)  # % of the rows


def set_slider(slider, value):
    """Move a slider as a hand does: the widget hears an input event."""
    slider.evaluate(
        "(node, value) => { node.value = value;"
        " node.dispatchEvent(new Event('input', {bubbles: true}));"
        " node.dispatchEvent(new Event('change', {bubbles: true})); }",
        str(value),
    )


def shoot(page, widget):
    """Give one frame of the film."""
    widget.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(widget.screenshot())).convert("RGB")
    return shot.resize((WIDTH, shot.height * WIDTH // shot.width), Image.Resampling.BOX)


def film(page):
    """Drag a rule of the mask, then leaf through the planes; give the frames."""
    tuner = page.get_by_role("group", name="Mask tuner")
    tuner.wait_for(timeout=180_000)
    top, frames = tuner.get_by_role("slider", name="top not above"), []
    for percent in TOPS:
        set_slider(top, percent / 100)
        frames.append(shoot(page, tuner))
    return frames


def save_film(frames, path):
    """Write a GIF: one palette, so that what does not move is not stored again."""
    palette = frames[len(frames) // 2].quantize(96)
    first, *rest = [frame.quantize(palette=palette, dither=0) for frame in frames]
    options = {"duration": 500, "loop": 0, "optimize": True}
    first.save(path, save_all=True, append_images=rest, **options)
    print(f"{path.name}: {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB")


def film_app(browser, folder):
    """Film the sliders app."""
    app = ROOT / "app"
    environment = private(folder) | {"JUPYTER_PATH": str(app)}
    process, address = serve(["voila", "sliders.ipynb"], app, environment)
    try:
        page = browser.new_page(viewport={"width": 1000, "height": 1000})
        page.goto(address, wait_until="commit", timeout=120_000)
        save_film(film(page), ROOT / "docs" / "sliders.gif")
    finally:
        process.terminate()


def picture_lab(browser, folder):
    """Take a picture of notebook 08 in JupyterLab, at its sliders."""
    shutil.copytree(ROOT / "notebooks", folder / "quest" / "notebooks")
    token = secrets.token_hex()
    command = ["jupyterlab", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--ServerApp.token={token}"]
    process, address = serve(command, folder / "quest", private(folder))
    try:
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.goto(f"{address}/lab?token={token}", timeout=60_000)
        page.wait_for_function("window.jupyterapp?.shell.currentWidget")
        Lab(page, folder).run("08_mask_one_plane.ipynb")
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        for _ in range(3):  # pictures above it grow while they load
            tuner = page.get_by_role("group", name="Mask tuner")
            tuner.evaluate("node => node.scrollIntoView({block: 'center'})")
            page.wait_for_timeout(2000)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shot.quantize(256).save(ROOT / "docs" / "jupyterlab.png", optimize=True)
    finally:
        process.terminate()


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        path = shutil.which("chromium") or player.chromium.executable_path
        browser = player.chromium.launch(executable_path=path, args=[*FLAGS, OFFLINE])
        film_app(browser, Path(folder, "app"))
        picture_lab(browser, Path(folder, "lab"))
        browser.close()


if __name__ == "__main__":
    main()
