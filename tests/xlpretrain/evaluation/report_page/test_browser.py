"""The page in a headless Chromium. Modules: browser.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import console_errors, emulate_scheme, open_browser, why_no_browser
from made_runs import append_rows, make_rows, make_run

from xlpretrain.evaluation.report_page.page import PageOptions, TextSample, render
from xlpretrain.evaluation.report_page.run_data import open_runs
from xlpretrain.evaluation.report_page.server import LivePage, PageServer

pytestmark = pytest.mark.full

EVIL = "</script><script>document.title='evil'</script>"
COLORS_DRAWN = """
const canvas = document.querySelector(arguments[0] + " canvas"), { width, height } = canvas;
const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data, found = {};
for (let i = 0; i < pixels.length; i += 4) {
  if (pixels[i + 3] > 250) found[pixels.slice(i, i + 3).join(" ")] = (found[pixels.slice(i, i + 3).join(" ")] ?? 0) + 1;
}
return found;
"""
LOSS = '.chart[data-metric="train/loss"]'


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    if reason := why_no_browser():
        pytest.skip(reason)
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    base = make_run(folder / "base", make_rows(5000, evaluate_every=500, crash_at=2000))
    origin = str(base / "checkpoints" / "step-00002000")
    branch = make_run(
        folder / "branch", make_rows(3000, seed=1, evaluate_every=500), {"init_from": origin, "name": EVIL}
    )
    return [base, branch]


def write(folders: list[Path], file: Path, **options: Any) -> str:
    readers = open_runs(folders)
    for reader in readers:
        reader.refresh()
    file.write_text(render([reader.read() for reader in readers], PageOptions(**options)))
    return file.as_uri()


@pytest.fixture
def page(driver: Any, folders: list[Path], tmp_path: Path) -> Any:
    """The driver with a page whose first charts are drawn."""
    driver.get(write(folders, tmp_path / "page.html", samples=[TextSample(EVIL, EVIL, EVIL)]))
    wait(driver, lambda: driver.execute_script(f"return !!document.querySelector('{LOSS} canvas')"))
    yield driver
    assert console_errors(driver) == []


def wait(driver: Any, condition: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 60).until(lambda _: condition())


def text(driver: Any, selector: str) -> str:
    """The text of an element, read at once: a served page replaces its elements."""
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def drawn_colors(driver: Any, chart: str = LOSS) -> dict[str, int]:
    """Number of opaque pixels by color, as "red green blue"."""
    return driver.execute_script(COLORS_DRAWN, chart)


def shown(driver: Any) -> str:
    return find(driver, "#shown").text


def legend(driver: Any, chart: str = LOSS) -> str:
    return find(driver, f"{chart} .u-legend").text


BASE, BRANCH = "0 103 177", "196 78 0"  # --c0 and --c1 in the light theme


def test_curves_of_all_runs_are_drawn(page: Any):
    found = drawn_colors(page)
    assert found.get(BASE, 0) > 100
    assert found.get(BRANCH, 0) > 50
    assert "base" in legend(page)
    assert page.title.startswith("base, branch")  # the name in the config is not run as a script
    find(page, ".chip input[data-run='1']").click()
    wait(page, lambda: BRANCH not in drawn_colors(page))
    assert "branch" not in legend(page)


def test_every_chart_is_drawn_once_it_is_near(page: Any):
    for chart in page.find_elements("css selector", ".chart"):
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
        wait(page, lambda chart=chart: chart.find_elements("css selector", "canvas"))


def test_zoom_by_dragging_and_by_buttons(page: Any):
    from selenium.webdriver.common.action_chains import ActionChains

    over = find(page, f"{LOSS} .u-over")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
    width = over.size["width"]
    drag = ActionChains(page).move_to_element_with_offset(over, -width // 4, 0).click_and_hold()
    drag.move_by_offset(width // 2, 0).release().perform()
    told = wait(page, lambda: shown(page))
    assert told.startswith("Zoomed: step 1,2") and " to 3,7" in told
    ActionChains(page).double_click(over).perform()
    wait(page, lambda: not shown(page))
    find(page, "[data-zoom='in']").click()
    assert shown(page).startswith("Zoomed: step 1,2")
    find(page, "[data-zoom='right']").click()
    assert shown(page).startswith("Zoomed: step 1,8")
    find(page, "[data-zoom='reset']").click()
    assert shown(page) == ""


def test_keys_zoom_and_read_values(page: Any):
    from selenium.webdriver.common.keys import Keys

    chart = find(page, LOSS)
    chart.send_keys("+")
    assert shown(page).startswith("Zoomed: step")
    chart.send_keys("0")
    assert shown(page) == ""
    assert legend(page).startswith("steplast")
    chart.send_keys(Keys.ARROW_RIGHT)
    at = wait(
        page, lambda: page.execute_script(f"return document.querySelector('{LOSS} .u-legend .u-value').textContent")
    )
    assert 2000 < float(at.replace(",", "")) < 3000


def test_everything_can_be_reached_by_keyboard(page: Any):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(
            page.execute_script(
                "const e = document.activeElement; return e.id || e.dataset.zoom || e.dataset.metric || e.className"
            )
        )
    for name in ("skip", "theme", "axis", "smoothing", "logx", "logy", "branches", "in", "reset", "train/loss"):
        assert name in reached, reached
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("axis", ["tokens", "clock", "running"])
def test_axes_of_tokens_and_time(page: Any, axis: str):
    find(page, f"#axis option[value='{axis}']").click()
    wait(page, lambda: {"tokens": "tokens", "clock": "minutes", "running": "minutes"}[axis] in legend(page))
    assert drawn_colors(page).get(BASE, 0) > 100


def test_logarithms_smoothing_and_branches_change_the_picture(page: Any):
    """Each toggle draws another picture, and drawing it back gives the first."""
    first = drawn_colors(page)
    for box in ("logx", "logy", "raw", "branches"):
        find(page, f"#{box}").click()
        wait(page, lambda: drawn_colors(page) not in ({}, first))
        find(page, f"#{box}").click()
        wait(page, lambda: drawn_colors(page) == first)
    assert find(page, "#smoothed").text == "100 steps"
    page.execute_script(
        "const s = arguments[0]; s.value = 0; s.dispatchEvent(new Event('input'))", find(page, "#smoothing")
    )
    wait(page, lambda: drawn_colors(page) not in ({}, first))
    assert find(page, "#smoothed").text == "off"


def test_dark_and_light_by_system_and_by_choice(page: Any):
    def background() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    emulate_scheme(page, dark=True)
    wait(page, lambda: background() == "rgb(20, 23, 28)")
    wait(page, lambda: drawn_colors(page).get("108 184 255", 0) > 100)
    find(page, "#theme option:nth-child(2)").click()
    wait(page, lambda: background() == "rgb(255, 255, 255)" and drawn_colors(page).get(BASE, 0) > 100)
    emulate_scheme(page, dark=False)


def test_a_phone_scrolls_in_one_direction(page: Any):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wait(page, lambda: page.execute_script("return document.querySelector('.uplot').clientWidth") < 390)
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_print_has_every_chart_on_white(page: Any):
    emulate_scheme(page, dark=True)
    counted = page.execute_script(
        "dispatchEvent(new Event('beforeprint'));"
        "return [...document.querySelectorAll('.chart')].filter(c => !c.closest('details:not([open])'))"
        ".map(c => c.querySelectorAll('canvas').length)"
    )
    assert len(counted) > 8 and set(counted) == {1}
    wait(page, lambda: drawn_colors(page).get(BASE, 0) > 50)
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    emulate_scheme(page, dark=False)


def test_a_served_page_follows_its_run(driver: Any, tmp_path: Path):
    rows = make_rows(400, evaluate_every=50)
    folder = make_run(tmp_path / "a", rows[:200], state="running", reason="")
    with PageServer(LivePage(open_runs([folder]), PageOptions(refresh_s=0.2)), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            driver.get(server.url)
            wait(driver, lambda: drawn_colors(driver).get(BASE, 0) > 100)
            find(driver, "[data-zoom='in']").click()
            zoomed = shown(driver)
            append_rows(folder, rows[200:])
            wait(driver, lambda: "400" in text(driver, "#overview td.n"))
            assert shown(driver) == zoomed
            find(driver, "[data-zoom='reset']").click()
        finally:
            server.shutdown()
            thread.join()
    wait(driver, lambda: "cannot be reached" in text(driver, "#liveness"))
    driver.get("about:blank")  # before the failed requests are on the next test's console
    console_errors(driver)


def test_five_runs_of_100_000_steps(driver: Any, tmp_path: Path):
    """At most 4,000 points a curve and 10 MB; the time to the first curve is printed."""
    rows = make_rows(100_000, evaluate_every=1000)
    rows[54_321]["train/loss"] = 77.0
    folders = [make_run(tmp_path / f"run-{i}", rows) for i in range(5)]
    url = write(folders, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 10e6
    driver.get(url)
    milliseconds = wait(
        driver, lambda: driver.execute_script("return performance.getEntriesByName('first-curve')[0]?.startTime")
    )
    print(f"first curve after {milliseconds:.0f} ms")  # with -s
    data = json.loads(find(driver, "#data").get_attribute("textContent"))
    for run in data["runs"]:
        for metric, curve in run["curves"].items():
            assert len(curve["x"]) * 3 // 4 <= 4 * 4000 + 3, metric
    highest = driver.execute_script(
        "const curve = JSON.parse(document.querySelector('#data').textContent).runs[4].curves['train/loss'];"
        "return Math.max(...new Float32Array(Uint8Array.from(atob(curve.y), c => c.charCodeAt(0)).buffer))"
    )
    assert highest == 77.0
    assert console_errors(driver) == []
