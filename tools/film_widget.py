"""Film the plane browser for the README: the real widget in the real browser.

python tools/film_widget.py        writes docs/planes.gif, at most 2 MB
"""

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import questlib

OUT = Path(__file__).resolve().parent.parent / "docs" / "planes.gif"
FRAMES = 22
WIDTH = 440  # pixels


def film(page, volume):
    """Move the plane slider from the feet to the head; return the frames."""
    slider = page.locator("input[type=range]").first
    there = [round(k * (volume.shape[0] - 1) / (FRAMES - 1)) for k in range(FRAMES)]
    frames = []
    for plane in there:
        slider.evaluate(
            "(node, value) => { node.value = value;"
            " node.dispatchEvent(new Event('input', {bubbles: true})); }",
            str(plane),
        )
        page.wait_for_timeout(120)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append(shot.resize((WIDTH, shot.height * WIDTH // shot.width)))
    return frames


def main():
    volume = questlib.load_series(questlib.choose_scan())
    labels = questlib.segment_lungs(volume).labels
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        path = Path(folder, "planes.html")
        questlib.explore_planes(volume, labels).save_html(path)
        browser = player.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 720, "height": 860})
        page.goto(path.as_uri())
        page.wait_for_timeout(2000)
        frames = film(page, volume)
        browser.close()
    # one palette for all frames, so that what does not move is not stored again
    palette = frames[FRAMES // 2].quantize(64)
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    frames[0].save(
        OUT,
        save_all=True,
        append_images=frames[1:],
        duration=250,
        loop=0,
        optimize=True,
    )
    print(f"{OUT.name}: {len(frames)} frames, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
