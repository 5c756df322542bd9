"""Reports as a reader has them: in a browser, by mouse and by keys alone, on a wide screen and on a narrow one."""

import json
import shutil

import pytest

from lpe_jax.reporting import views
from lpe_jax.reporting.html import render
from tests.reporting.reports import NASTY, contents, large, nasty

selenium = pytest.importorskip("selenium", reason="selenium, of the test extra, is not installed")
PROGRAMS = [shutil.which(name) for name in ("chromium", "chromedriver")]
pytestmark = pytest.mark.skipif(None in PROGRAMS, reason="chromium and chromium-driver are not installed")

IDS = ["beta", "alpha", "delta", "gamma-10", "gamma-9"]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(PROGRAMS[1]))
    yield driver
    driver.quit()


@pytest.fixture
def read(browser, tmp_path):
    """Opens a page of these runs, and waits for its script. When the test ends, nothing may have been asked of any
    network, or complained of.
    """

    from selenium.webdriver.support import wait

    def call(runs, width=1280):
        (tmp_path / "report.html").write_text(render(runs), encoding="utf-8")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((tmp_path / "report.html").as_uri())
        # A large page may still be read when the driver takes it for loaded.
        wait.WebDriverWait(browser, 20).until(lambda b: all_of(b, "html[data-ready]"))
        return browser

    yield call
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:,")} == {(tmp_path / "report.html").as_uri()}
    assert browser.get_log("browser") == []


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def shown(browser):
    """The prompts of the table, from above, as far as they are seen."""
    rows = [e for e in all_of(browser, ".prompts > tbody") if e.is_displayed()]
    return [row.find_element("css selector", ".open").text for row in rows]


def keys(browser, *names):
    from selenium.webdriver import ActionChains, Keys

    chain = ActionChains(browser)
    for name in names:
        chain.send_keys(getattr(Keys, name, name))
    chain.perform()


def test_prompts_are_sorted(read):
    browser = read([contents(IDS)])
    heads = all_of(browser, ".prompts thead th")
    heads[0].find_element("css selector", "button").click()
    assert shown(browser) == ["alpha", "beta", "delta", "gamma-9", "gamma-10"]
    assert heads[0].get_attribute("aria-sort") == "ascending"
    heads[1].find_element("css selector", "button").click()
    assert [heads[i].get_attribute("aria-sort") for i in (0, 1)] == ["none", "descending"]
    rates = [float(row.get_attribute("data-rate")) for row in all_of(browser, ".prompts > tbody")]
    assert rates == sorted(rates, reverse=True)
    heads[1].find_element("css selector", "button").click()
    assert heads[1].get_attribute("aria-sort") == "ascending"


def test_prompts_are_found_and_counted(read):
    browser = read([contents(IDS)])
    find = all_of(browser, "[data-find]")[0]
    find.send_keys("GAMMA")
    assert shown(browser) == ["gamma-10", "gamma-9"]
    assert all_of(browser, "[data-showing]")[0].text == "2 of 5 shown"
    find.clear()
    find.send_keys(" ")
    rates = [float(row.get_attribute("data-rate")) for row in all_of(browser, ".prompts > tbody")]
    middle = sorted(rates)[2]
    text = browser.find_element("id", "risk")
    text.clear()
    text.send_keys(repr(middle))
    assert all_of(browser, "[data-count=estimated]")[0].text == "2"
    all_of(browser, "[data-state] option[value=above]")[0].click()
    assert len(shown(browser)) == 2
    text.clear()
    text.send_keys("many")
    assert (
        text.get_attribute("aria-invalid") == "true"
        and "between 0 and 1" in browser.find_element("id", "risk-said").text
    )


def test_keys_alone_suffice(read):
    browser = read([contents(IDS)])
    keys(browser, "TAB")
    assert browser.switch_to.active_element.text == "Skip to the prompts"
    keys(browser, "ENTER", "TAB", "TAB", "TAB")
    assert browser.switch_to.active_element.text == "Open all"
    for _ in range(20):
        keys(browser, "TAB")
        if "open" in (browser.switch_to.active_element.get_attribute("class") or ""):
            break
    button = browser.switch_to.active_element
    assert button.text == "beta" and button.get_attribute("aria-expanded") == "false"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    sheet = browser.find_element("id", button.get_attribute("aria-controls"))
    assert not sheet.is_displayed()
    keys(browser, "ENTER")
    assert button.get_attribute("aria-expanded") == "true" and sheet.is_displayed()
    figure = sheet.find_element("css selector", "svg")
    assert figure.is_displayed() and figure.size["height"] > 150
    # The texts stay folded until they are asked for.
    assert not sheet.find_element("css selector", "pre").is_displayed()
    keys(browser, "SPACE")
    assert not sheet.is_displayed()


def test_everything_can_be_reached_by_name(read):
    browser = read([contents(IDS)])
    unnamed = browser.execute_script(
        "return Array.from(document.querySelectorAll("
        "'button,input,select,[role=region],svg.figure:not([aria-hidden])')).filter(e =>"
        " !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length)))"
        ".map(e => e.outerHTML.slice(0, 90))"
    )
    assert unnamed == []
    levels = [int(e.tag_name[1]) for e in all_of(browser, "h1,h2,h3,h4")]
    assert levels[0] == 1 and levels.count(1) == 1


def test_nothing_from_outside_is_alive(read):
    browser = read(nasty())
    for button in all_of(browser, "[data-all]"):
        button.click()
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.execute_script("return window.struck") is None
    texts = [pre.get_attribute("textContent") for pre in all_of(browser, "pre")]
    assert {views.visible(text) for text in NASTY} <= set(texts)
    assert len(all_of(browser, "script,style")) == 2 and not all_of(browser, "img,iframe,base,textarea,plaintext")
    # Were a script to get in after all, the page's policy would not let it run.
    browser.execute_script(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'struck = 9'}))"
    )
    assert browser.execute_script("return window.struck") is None
    (refused,) = browser.get_log("browser")
    assert "Content Security Policy" in refused["message"]


def test_two_hundred_prompts_are_ready_at_once(read, monkeypatch):
    monkeypatch.setattr(views, "deployment", lambda results: ([], "left out"))
    browser = read([large()])
    ready = int(browser.execute_script("return document.documentElement.dataset.ready"))
    assert ready < 2000
    took = browser.execute_script(
        "const began = performance.now();"
        "document.querySelectorAll('.prompts thead button')[1].click(); document.body.offsetHeight;"
        "return performance.now() - began"
    )
    assert took < 1000


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_page_is_wider_than_its_window(read, width):
    browser = read([*nasty()[:1], contents(IDS, name="other")], width)
    all_of(browser, "[data-all]")[0].click()
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    inner, body = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert body <= inner == width


def test_paper_has_everything_opened(read):
    browser = read([contents(IDS)])
    all_of(browser, "[data-find]")[0].send_keys("alpha")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert len(shown(browser)) == 5
        assert all(figure.is_displayed() for figure in all_of(browser, ".detail svg"))
        assert not any(tools.is_displayed() for tools in all_of(browser, ".control"))
        assert not any(pre.is_displayed() for pre in all_of(browser, "pre"))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
