"""The report in headless Chromium, as a person and as the KFP UI open it.

Every test also checks that the console stays silent and that nothing is asked of the network.
"""

from __future__ import annotations

import html
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from components.lib.report import page, runs
from components.lib.report.comparison import run_page
from components.lib.report.curves import Run, read_run
from components.lib.report.pictures import strip
from components.lib.video.encode import write_mp4

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="Chromium is not installed (apt-get install chromium chromium-driver)",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1200,1000",
)  # fmt: skip
STEPS = 200


class View(Protocol):
    """Opens a page from disk."""

    def __call__(self, content: bytes, name: str = "report.html") -> Chrome: ...


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the module; its console and network are logged."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def view(chrome: Chrome, tmp_path: Path) -> Iterator[View]:
    """Open a page from disk; afterwards the console must be empty and the network unused."""

    def show(content: bytes, name: str = "report.html") -> Chrome:
        path = tmp_path / name
        path.write_bytes(content)
        chrome.get_log("browser"), chrome.get_log("performance")
        chrome.get(path.as_uri())
        return chrome

    yield show
    assert [entry["message"] for entry in chrome.get_log("browser")] == []
    requests = [
        message["params"]["request"]["url"]
        for entry in chrome.get_log("performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert any(url.startswith("file:") for url in requests), "the log does record requests"


def make_run(name: str, seed: int, floor: float = 0.5) -> Run:
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, STEPS + 1):
        loss = (floor + 2 * np.exp(-step / 40)) * np.exp(rng.normal(0, 0.15))
        lines.append(
            {"step": step, "split": "train", "loss": loss, "step_seconds": 0.5, "mfu": 0.5}
        )
        if step % 40 == 0:
            lines.append(
                {"step": step, "split": "validation", "loss": floor + 2 * np.exp(-step / 40)}
            )
    data = "\n".join(map(json.dumps, lines)).encode()
    return read_run(name, data, "metrics.jsonl", {"optim": {"lr": seed}})


@pytest.fixture(scope="module")
def two_runs() -> list[Run]:
    return [make_run("first", 0), make_run("second", 1, floor=0.9)]


def chart(driver: Chrome, key: str = "loss") -> WebElement:
    return driver.find_element("css selector", f'figure[data-chart="{key}"]')


def ticks(driver: Chrome, key: str = "loss") -> list[float]:
    """Labels of the horizontal axis, from left to right."""
    labels: list[float] = driver.execute_script(
        "return [...document.querySelectorAll(`figure[data-chart='${arguments[0]}'] "
        "text.tick[text-anchor=middle]`)].map((t) => Number(t.textContent.replace(',', '')))",
        key,
    )
    return labels


def move(
    driver: Chrome, x: float, y: float = 0.5, press: bool = False, release: bool = False
) -> None:
    """Pointer events on the loss chart at fractions of its width and height."""
    from selenium.webdriver.common.action_chains import ActionChains

    plot = chart(driver).find_element("css selector", "svg.plot")
    dx = round((x - 0.5) * plot.size["width"])
    dy = round((y - 0.5) * plot.size["height"])
    actions = ActionChains(driver, duration=20).move_to_element_with_offset(plot, dx, dy)
    if press:
        actions = actions.click_and_hold()
    if release:
        actions = actions.release()
    actions.perform()


def to_chart(driver: Chrome) -> None:
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart(driver))


def test_a_fault_would_be_noticed(chrome: Chrome, tmp_path: Path) -> None:
    """The two checks of `view` can fail: errors and requests do show in the logs."""
    path = tmp_path / "bad.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>nothing.here</script>")
    chrome.get(path.as_uri())
    assert any("nothing is not defined" in e["message"] for e in chrome.get_log("browser"))
    assert any("127.0.0.1:9" in e["message"] for e in chrome.get_log("performance"))


def test_hovering_reads_out_the_logged_values(view: View, two_runs: list[Run]) -> None:
    driver = view(run_page(two_runs))
    to_chart(driver)
    move(driver, 0.5)
    tip = chart(driver).find_element("css selector", ".tip")
    assert tip.is_displayed()
    text = tip.text
    step = int(text.splitlines()[0].rsplit(" ", 1)[1])
    assert abs(step - STEPS / 2) < 0.1 * STEPS, "the middle of the chart is the middle of the run"
    for run in two_runs:
        value = run.get("loss").values[run.get("loss").steps.index(step)]
        assert f"{float(f'{value:.6g}'):.5g}" in text
    move(driver, 0.5, 1.2)
    assert not tip.is_displayed()


def test_dragging_zooms_and_double_click_goes_back(view: View, two_runs: list[Run]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    driver = view(run_page(two_runs))
    to_chart(driver)
    before = ticks(driver)
    move(driver, 0.5, press=True)
    move(driver, 0.75, release=True)
    zoomed = ticks(driver)
    assert min(zoomed) >= 0.4 * STEPS and max(zoomed) <= 0.8 * STEPS
    plot = chart(driver).find_element("css selector", "svg.plot")
    ActionChains(driver).double_click(plot).perform()
    assert ticks(driver) == before


def test_runs_are_switched_off_and_on(view: View, two_runs: list[Run]) -> None:
    driver = view(run_page(two_runs))

    def lines() -> list[int]:
        numbers: list[int] = driver.execute_script(
            "return [...document.querySelectorAll(\"figure[data-chart='loss'] g[data-line]\")]"
            ".map((g) => Number(g.dataset.line))"
        )
        return numbers

    assert lines() == [0, 1, 2, 3]
    keys = chart(driver).find_elements("css selector", ".legend button")
    assert [key.text for key in keys] == [
        "first", "first, validation", "second", "second, validation",
    ]  # fmt: skip
    driver.execute_script("arguments[0].click()", keys[0])
    assert lines() == [1, 2, 3] and keys[0].get_attribute("aria-pressed") == "false"
    driver.execute_script("arguments[0].click()", keys[0])
    assert lines() == [0, 1, 2, 3]


def test_log_scale_and_smoothing_change_what_is_drawn(view: View, two_runs: list[Run]) -> None:
    driver = view(run_page(two_runs))

    def drawn() -> str:
        points: str = driver.execute_script(
            "return document.querySelector(\"figure[data-chart='loss'] g[data-line='0'] "
            'polyline.main").getAttribute("points")'
        )
        return points

    linear = drawn()
    button = chart(driver).find_element("css selector", ".controls button")
    driver.execute_script("arguments[0].click()", button)
    logarithmic = drawn()
    assert logarithmic != linear and button.get_attribute("aria-pressed") == "true"
    slider = chart(driver).find_element("css selector", "input[type=range]")
    driver.execute_script(
        "arguments[0].value = 90; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    heights = [float(p.split(",")[1]) for p in drawn().split()]
    raw = driver.execute_script(
        "return document.querySelector(\"figure[data-chart='loss'] g[data-line='0'] "
        'polyline.raw").getAttribute("points")'
    )
    rough = [float(p.split(",")[1]) for p in raw.split()]
    assert np.abs(np.diff(heights)).mean() < 0.3 * np.abs(np.diff(rough)).mean()


def test_works_in_a_sandboxed_frame_as_the_kfp_ui_shows_it(view: View, two_runs: list[Run]) -> None:
    """srcdoc with scripts only: no origin, so storage would throw and '#' links would leave."""
    content = run_page(two_runs).decode()
    style = "width:1100px;height:900px"
    frame = f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(content)}">'
    shell = f'<!doctype html><link rel="icon" href="data:,"><title>UI</title>{frame}</iframe>'
    driver = view(shell.encode(), "shell.html")
    driver.switch_to.frame(0)
    assert "ready" in (driver.find_element("css selector", "html").get_attribute("class") or "")
    for button in driver.find_elements("css selector", "nav button"):
        driver.execute_script("arguments[0].click()", button)
    assert driver.find_element("css selector", "h1").text == "2 training runs"
    assert ticks(driver)
    driver.switch_to.default_content()


def test_readable_without_scripts(chrome: Chrome, view: View, two_runs: list[Run]) -> None:
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver = view(run_page(two_runs))
        plot = chart(driver).find_element("css selector", "svg.plot")
        assert plot.size["width"] > 800 and plot.size["height"] > 250
        assert len(plot.find_elements("css selector", "polyline.main")) == 2
        assert not chart(driver).find_elements("css selector", ".controls")
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_person_can_read_the_curves(
    chrome: Chrome, view: View, two_runs: list[Run], theme: str, tmp_path: Path
) -> None:
    """Both curves and their text stand out from the ground, in both themes, on a screenshot."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver = view(run_page(two_runs))
    to_chart(driver)
    plot = chart(driver).find_element("css selector", "svg.plot")
    picture = np.asarray(Image.open(io.BytesIO(plot.screenshot_as_png)).convert("RGB")).astype(int)
    ground = picture[3, 3]
    assert (ground.mean() > 200) == (theme == "light")
    colours = driver.execute_script(
        "return [0, 1].map((i) => getComputedStyle(document.querySelector("
        "`figure[data-chart='loss'] g.s${i}`)).color)"
    )
    for text in colours:
        colour = np.array([int(part) for part in text[4:-1].split(",")])
        assert contrast(colour, ground) > 3, "WCAG's bound for graphics"
        near = np.abs(picture - colour).sum(axis=2) < 40
        columns = near.any(axis=0).mean()
        assert columns > 0.75, "the curve runs across the picture"
    label = driver.execute_script(
        "return getComputedStyle(document.querySelector('text.tick')).fill"
    )
    ink = np.array([int(part) for part in label[4:-1].split(",")])
    assert contrast(ink, ground) > 4.5, "WCAG's bound for text"
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: npt.ArrayLike) -> float:
        channel = np.asarray(colour) / 255
        linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted([luminance(first), luminance(second)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_pictures_show_and_videos_play(view: View, tmp_path: Path) -> None:
    frames = [np.full((64, 96, 3), 20 * i, np.uint8) for i in range(12)]
    write_mp4(tmp_path / "v.mp4", frames, 12)
    sheet = strip({"original": frames[:3], "after": frames[3:6]})
    content = page.page(
        title="t", about="", headline=[], tiles=[], charts=[],
        sections=[page.section("Pictures", page.gallery([
            page.Picture(caption="strip", data=sheet, media="image/jpeg"),
            page.Picture(caption="clip", data=(tmp_path / "v.mp4").read_bytes(), media="video/mp4"),
        ]))],
    )  # fmt: skip
    driver = view(content)
    natural = driver.execute_script("return document.querySelector('img').naturalWidth")
    assert natural > 700
    played = driver.execute_async_script(
        """const done = arguments[0], video = document.querySelector('video');
        video.ontimeupdate = () => { if (video.currentTime > 0.3) done(video.currentTime); };
        video.onerror = () => done('error ' + video.error.message);
        video.play().catch((error) => done('error ' + error));"""
    )
    assert isinstance(played, float) and played > 0.3


def test_tables_sort_by_number(view: View) -> None:
    content = page.page(
        title="t", about="", headline=[], tiles=[], charts=[],
        sections=[page.section("T", page.table(["a", "b"], [["x", 9.0], ["y", 10.0], ["z", 1.0]]))],
    )  # fmt: skip
    driver = view(content)
    head = driver.find_elements("css selector", "th")[1]
    head.click()
    rows = [row.text.split()[0] for row in driver.find_elements("css selector", "tbody tr")]
    assert rows == ["z", "x", "y"]


def test_hostile_names_stay_text(view: View) -> None:
    nasty = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
    run = make_run(nasty, 0).model_copy(update={"settings": {nasty: nasty}})
    driver = view(run_page([run, make_run("<b>bold</b>", 1)]))
    assert driver.title == "2 training runs"
    assert nasty in driver.find_element("css selector", "tbody").text
    assert not driver.find_elements("css selector", "img, b.x")


def test_a_single_page_is_small_and_thins_long_runs(view: View) -> None:
    rng = np.random.default_rng(0)
    values = 1 + rng.random(50_000)
    values[33_333] = 9.0
    lines = [json.dumps({"step": i, "loss": float(v)}) for i, v in enumerate(values)]
    run = read_run("long", "\n".join(lines).encode(), "x")
    content = run_page([run])
    assert len(content) < 600_000
    driver = view(content)
    highest = driver.execute_script(
        "return Math.max(...JSON.parse(document.getElementById('charts').textContent)"
        ".loss.lines[0].value)"
    )
    assert highest == 9.0, "a spike survives the thinning"
    assert runs.judge_runs([run])[0].verdict.word
