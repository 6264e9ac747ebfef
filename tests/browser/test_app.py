"""The Voila app: the sliders without a notebook."""

import re

from playwright.sync_api import expect


def test_the_app_shows_both_widgets(voila, page, shoot, drag):
    page.goto(voila, wait_until="commit", timeout=120_000)
    tuner = page.get_by_role("group", name="Mask tuner")
    tuner.wait_for(timeout=120_000)
    before = tuner.locator("tbody").inner_text()
    drag(tuner.get_by_role("slider", name="top not above"), 0.95)
    expect(tuner.locator("tbody")).not_to_have_text(before)
    expect(tuner.locator(".quest-verdict")).to_have_text(re.compile("^0 of"))
    shoot("app_mask", tuner)
    planes = page.get_by_role("group", name="Plane browser")
    where = planes.locator(".quest-where").inner_text()
    drag(planes.get_by_label("axial plane"), 0.9)
    expect(planes.locator(".quest-where")).not_to_have_text(where)
    shoot("app_planes", planes)
