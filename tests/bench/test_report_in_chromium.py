"""The report's page opened in headless Chromium: no errors, no overflow, and what can be clicked works.

Debian: ``apt-get install chromium chromium-driver``, as `.ci/run` does. Without them these tests say that they did not
run; the page's structure is tested in `test_report.py` all the same.
"""

import shutil

import pytest

import clenv

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, which CI has")


@pytest.fixture(scope="module")
def place(played, tmp_path_factory):
    import bench_folder

    place = shutil.copytree(played, tmp_path_factory.mktemp("chromium") / "bench")
    bench_folder.fail(place / "runs/near-tiny-1")
    return clenv.report(place)


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(DRIVER)
    chrome = Chrome(options=options, service=service)
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser, place):
    """Return a function that opens the page at a width, in a theme, and gives a function to run scripts in it."""

    def open_(width=1280, theme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get("about:blank")
        browser.get(place.as_uri())
        return browser.execute_script

    yield open_
    assert browser.get_log("browser") == []


def column(run, table, number):
    """Return the texts of a column of the first table of this kind, rows that are hidden left out."""
    return run(
        "const table = document.querySelector(arguments[0]);"
        "return [...table.tBodies[0].rows].filter(r => r.offsetParent).map(r => r.cells[arguments[1]].innerText)",
        table,
        number,
    )


def click_head(run, table, number):
    run("document.querySelector(arguments[0]).tHead.rows[0].cells[arguments[1]].querySelector('button').click()",
        table, number)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen_and_nothing_is_fetched(opened, width, theme):
    run = opened(width, theme)
    run("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    assert run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert run("return innerWidth") == width
    assert run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert run("return document.getElementById('shown').textContent") == "12 of 12 runs"


def test_the_theme_is_the_systems_until_it_is_changed(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.querySelector('.plot text')).fill"
    run = opened(theme="light")
    light = run(paper), run(ink)
    dark_run = opened(theme="dark")
    dark = dark_run(paper), dark_run(ink)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(17, 21, 26)"
    assert light[1] != dark[1]
    run("document.getElementById('theme').click()")
    assert (run(paper), run(ink)) == light
    assert run("return document.getElementById('theme').textContent") == "Dark theme"


def test_tables_are_sorted_by_numbers_and_by_text_and_the_unknown_comes_last(opened):
    run = opened()
    table = "table.leaderboard"
    ranked = column(run, table, 1)
    click_head(run, table, 1)
    assert column(run, table, 1) == sorted(ranked)
    click_head(run, table, 1)
    assert column(run, table, 1) == sorted(ranked, reverse=True)
    click_head(run, table, 0)
    assert column(run, table, 1) == ranked
    click_head(run, table, 4)
    accuracies = [float(text) for text in column(run, table, 4)]
    assert accuracies == sorted(accuracies)
    assert run("return document.querySelector('table.leaderboard th[aria-sort]').cellIndex") == 4
    for _ in range(2):  # the best has no difference to itself
        click_head(run, "table.differences", 3)
        assert column(run, "table.differences", 3)[-1] == "the best"


def test_filters_hide_rows_runs_and_curves(opened):
    run = opened()

    def choose(name, value):
        run(
            "const f = document.querySelector(`#filters [name=${arguments[0]}]`); f.value = arguments[1];"
            "f.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def shown():
        return run("return document.getElementById('shown').textContent")

    lines = "return [...document.querySelectorAll('[data-line]:not(.hidden)')].map(e => e.dataset.line)"
    assert set(run(lines)) == {"0", "1", "2"}
    choose("agent", "blind, lr=")
    assert shown() == "8 of 12 runs"
    assert set(column(run, "table.leaderboard", 1)) == {"blind", "tiny lr=0.5"}
    assert set(run(lines)) == {"1", "2"}
    choose("seed", "1")
    assert shown() == "4 of 12 runs"
    choose("scenario", "far")
    assert shown() == "2 of 12 runs"
    parts = "return [...document.querySelectorAll('details.part')].map(e => e.open && e.offsetParent !== null)"
    assert run(parts) == [False, True]
    run("document.querySelector('#filters button').click()")
    run("return new Promise(done => setTimeout(done, 50))")
    assert shown() == "12 of 12 runs"
    choose("state", "failed")
    assert shown() == "1 of 12 runs"
    assert run("return document.querySelector('.run:not(.hidden)').innerText").strip().startswith("tiny on near")
    choose("state", "")
    assert shown() == "12 of 12 runs"


def test_a_link_to_a_run_opens_it(opened):
    run = opened()
    run("document.querySelector('#commands a').click()")
    run("return new Promise(done => setTimeout(done, 100))")
    assert run("return document.querySelector('.run').open")
    assert run("return document.querySelectorAll('.run[open]').length") == 1


def test_an_agent_pointed_at_stands_out(opened):
    run = opened()
    opacity = "return [...document.querySelectorAll('[data-line]')].map(e => e.style.opacity || '1')"
    run("document.querySelector('.legend [data-place=\"1\"]').dispatchEvent(new PointerEvent('pointerenter'))")
    assert set(run(opacity)) == {"1", "0.15"}
    run("document.querySelector('.legend [data-place=\"1\"]').dispatchEvent(new PointerEvent('pointerleave'))")
    assert set(run(opacity)) == {"1"}


def test_on_paper_everything_is_open_and_light(opened):
    run = opened(theme="dark")
    run("dispatchEvent(new Event('beforeprint'))")
    assert run("return document.querySelectorAll('details:not([open])').length") == 0
    assert run("return document.documentElement.dataset.theme") == "light"
    run("dispatchEvent(new Event('afterprint'))")
    assert run("return document.querySelectorAll('.run[open]').length") == 0
    assert run("return document.documentElement.dataset.theme") == "dark"


def test_on_paper_nothing_is_cut_off(opened, browser):
    run = opened(width=720)  # A4 between its margins
    run("dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    too_wide = (
        "return [...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > 720).length"
    )
    assert run("return document.querySelectorAll('table').length") > 20
    assert run(too_wide) == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_every_picture_has_a_name_in_the_accessibility_tree(opened, browser):
    opened()
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    images = [node for node in nodes if not node["ignored"] and node["role"]["value"] in {"image", "img"}]
    assert len(images) > 10
    assert all(node["name"]["value"] for node in images)
