"""Reports as a reader has them: in a browser, by mouse and by keys alone, on a wide screen and on a narrow one."""

import base64
import json
import math
import shutil
import subprocess

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


@pytest.fixture
def media(browser):
    """Sets what the page is shown on."""
    yield lambda media="", **features: browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]},
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def size(browser, selector):
    """The font's size in px."""
    script = "return parseFloat(getComputedStyle(document.querySelector(arguments[0])).fontSize)"
    return browser.execute_script(script, selector)


def test_paper_has_the_table_first_and_figures_two_across(read, media):
    browser = read([contents(IDS)])
    all_of(browser, ".open")[4].click()
    all_of(browser, "[data-find]")[0].send_keys("a")
    all_of(browser, "[data-find]")[0].send_keys(" -")
    all_of(browser, ".prompts thead button")[0].click()
    media("print")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert shown(browser) == ["gamma-9", "gamma-10"]
    assert all_of(browser, "[data-filtered]")[0].text == "Only 2 of 5 prompts: found by “a -”."
    assert not any(tools.is_displayed() for tools in all_of(browser, ".control"))
    sheets = all_of(browser, ".sheets .sheet")
    assert [sheet.get_attribute("data-name") for sheet in sheets] == ["gamma-9", "gamma-10"]
    broad, narrow = sheets
    table = all_of(browser, ".prompts")[0]
    assert all(sheet.rect["y"] >= table.rect["y"] + table.rect["height"] for sheet in sheets)
    assert narrow.rect["width"] < 0.5 * broad.rect["width"]
    assert all(sheet.find_element("css selector", "svg").is_displayed() for sheet in sheets)
    assert [sheet.find_element("css selector", ".counts").is_displayed() for sheet in sheets] == [True, False]
    assert not any(pre.is_displayed() for pre in all_of(browser, "pre"))
    # No row is left where a sheet was taken from.
    assert not any(row.is_displayed() for row in all_of(browser, "tbody:not(.gone) > .detail"))
    # What is said beside is no larger than what it is beside.
    assert size(browser, ".quiet") <= size(browser, ".prompts td") < size(browser, "body") < size(browser, ".lead")
    assert len(all_of(browser, "details.printed[open]")) == len(all_of(browser, "details.printed"))
    media("")
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert not all_of(browser, ".sheets .sheet") and len(all_of(browser, ".detail .sheet")) == 5
    assert not all_of(browser, "details.printed[open]")
    assert not all_of(browser, "[data-filtered]")[0].is_displayed()


def test_printed_figures_take_few_pages_and_columns_have_names_on_each(read, tmp_path):
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("pdftotext is not installed")
    browser = read([contents([f"fold-{i:02d}" for i in range(60)])])
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    (tmp_path / "report.pdf").write_bytes(base64.b64decode(printed["data"]))
    text = subprocess.run([reader, tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")[:-1]
    tables = [page for page in pages if "identified" in page and page.count("fold-") > 12]
    assert len(tables) >= 2 and all("Unscored" in page and "Rollouts" in page for page in tables)
    # Four figures a page, with the legend of each.
    assert sum("compliance rate" in page for page in pages) <= 16


def test_what_is_found_is_shown_on_return(read):
    browser = read([contents(IDS)])
    all_of(browser, "[data-find]")[0].send_keys("gamma")
    assert len(shown(browser)) == 2
    browser.get("data:,elsewhere")
    browser.back()
    assert all_of(browser, "[data-find]")[0].get_attribute("value") == "gamma"
    assert shown(browser) == ["gamma-10", "gamma-9"]


def test_open_all_is_named_by_what_it_would_do(read):
    browser = read([contents(IDS)])
    opener, find = all_of(browser, "[data-all]")[0], all_of(browser, "[data-find]")[0]
    find.send_keys("gamma")
    opener.click()
    assert opener.text == "Close all"
    for _ in "gamma":
        find.send_keys("\b")
    assert len(shown(browser)) == 5 and opener.text == "Open all"
    opener.click()
    assert opener.text == "Close all" and len(all_of(browser, ".prompts > tbody.opened")) == 5
    all_of(browser, ".open")[1].click()
    assert opener.text == "Open all"
    find.send_keys("nothing of this name")
    assert opener.text == "Open all"


def test_a_row_opens_where_no_text_is_chosen(read):
    browser = read([contents(IDS)])
    body = all_of(browser, ".prompts > tbody")[0]
    cell = body.find_elements("css selector", "td")[0]
    cell.click()
    assert "opened" in body.get_attribute("class")
    browser.execute_script("getSelection().selectAllChildren(arguments[0])", cell)
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", cell)
    assert "opened" in body.get_attribute("class")


@pytest.mark.parametrize(
    ("typed", "rate"),
    [("1/1000", 1e-3), ("0,001", 1e-3), ("10^-3", 1e-3), ("2 * 10^-3", 2e-3), ("1/1,000,000", 1e-6), (".5", 0.5)],
)
def test_a_rate_is_read_however_it_is_written(read, typed, rate):
    browser = read([contents(IDS)])
    text = browser.find_element("id", "risk")
    text.clear()
    text.send_keys(typed)
    assert text.get_attribute("aria-invalid") == "false"
    rates = [float(row.get_attribute("data-rate")) for row in all_of(browser, ".prompts > tbody")]
    assert all_of(browser, "[data-count=estimated]")[0].text == str(sum(r > rate for r in rates))
    assert all_of(browser, "[data-risk]")[0].text == typed
    slide = browser.find_element("id", "slide")
    assert float(slide.get_attribute("value")) == pytest.approx(math.log10(rate), abs=0.051)
    assert slide.get_attribute("aria-valuetext") == typed


@pytest.mark.parametrize("typed", ["many", "1/0", "1/2/3", "2", "0x1", "1,5", "0"])
def test_what_is_no_rate_is_seen_to_be_none(read, typed):
    browser = read([contents(IDS)])
    text, said = browser.find_element("id", "risk"), browser.find_element("id", "risk-said")
    border = "return getComputedStyle(arguments[0]).borderTopColor"
    before = browser.execute_script(border, text)
    text.clear()
    text.send_keys(typed)
    assert text.get_attribute("aria-invalid") == "true" and browser.execute_script(border, text) != before
    assert "between 0 and 1" in said.text and said.value_of_css_property("color") == text.value_of_css_property("color")
    # Beside the box, or under it, and never behind the slider.
    assert said.rect["x"] < text.rect["x"] + text.rect["width"] + 20


def test_changes_are_told_once(read):
    from selenium.webdriver.support import wait

    browser = read([contents(IDS, name="one"), contents(IDS, name="other")])
    browser.execute_script(
        "window.heard = []; new MutationObserver(() => heard.push(document.getElementById('told').textContent))"
        ".observe(document.getElementById('told'), {childList: true})"
    )
    assert len(all_of(browser, "[aria-live], [role=status]")) == 1
    text = browser.find_element("id", "risk")
    text.clear()
    text.send_keys("1e-3")
    wait.WebDriverWait(browser, 5).until(lambda b: b.execute_script("return heard.length"))
    (heard,) = browser.execute_script("return heard")
    assert heard.startswith("one: Estimated above a rate of 1e-3: ") and " other: Estimated above" in heard
    all_of(browser, ".sortable thead button")[0].click()
    wait.WebDriverWait(browser, 5).until(lambda b: b.execute_script("return heard.length == 2"))
    assert browser.execute_script("return heard[1]") == "Sorted by Prompt, ascending"


@pytest.mark.parametrize(("width", "stops"), [(320, True), (1280, False)])
def test_only_what_scrolls_is_a_stop_for_keys(read, width, stops):
    from selenium.webdriver.support import wait

    browser = read([contents(IDS)], width)
    all_of(browser, ".open")[0].click()
    counts = all_of(browser, ".across .wide")[0]
    wait.WebDriverWait(browser, 5).until(lambda _: (counts.get_attribute("tabindex") == "0") is stops)
    assert all_of(browser, ".prompts")[0].find_element("xpath", "..").get_attribute("tabindex") is None


def test_runs_are_reached_from_the_top(read):
    browser = read([contents(IDS, name="one"), contents(IDS, name="other")])
    links = all_of(browser, "nav a")
    assert [link.get_attribute("textContent") for link in links] == [
        "one",
        "prompts of one",
        "other",
        "prompts of other",
    ]
    links[3].click()
    assert browser.switch_to.active_element.get_attribute("id") == "r1-prompts"
    browser.execute_script("document.getElementById('r1').focus()")
    keys(browser, "TAB")
    assert browser.switch_to.active_element.text == "Skip to the prompts of other"


LUMINANCE = """
const ground = (e) => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } };
const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const e = document.querySelector(arguments[0]);
const [a, b] = [light(getComputedStyle(e, arguments[2])[arguments[1]]),
  light(arguments[1] === "color" || arguments[1] === "fill" ? ground(e) : ground(e.parentElement))];
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_edges_stand_out(read, media, scheme):
    """WCAG 2.2 AA: 4.5 to 1 for texts, 3 to 1 for edges of what is worked with."""
    media(prefers_color_scheme=scheme)
    browser = read([contents([f"p{i}" for i in range(12)])])
    browser.execute_script("document.querySelector('.state').className = 'state contradicted'")
    for selector, kind, part in (
        (".quiet", "color", None),
        (".tiles span", "color", None),
        (".state.contradicted", "color", None),
        (".open", "color", None),
        (".figure .said", "fill", None),
        ("[data-find]", "color", "::placeholder"),
    ):
        assert browser.execute_script(LUMINANCE, selector, kind, part) >= 4.5, selector
    for selector in ("#risk", "[data-find]", "[data-state]", "[data-all]"):
        assert browser.execute_script(LUMINANCE, selector, "borderTopColor", None) >= 3, selector


@pytest.mark.parametrize("width", [360, 1280])
def test_what_is_pressed_is_large_enough(read, width):
    browser = read([contents(IDS)], width)
    pressed = all_of(browser, "button, summary, input, select")
    assert not [(e.text, e.rect) for e in pressed if e.is_displayed() and e.rect["height"] < 24]


def test_letters_follow_the_size_the_reader_asked_for(read):
    browser = read([contents(IDS)])
    places = ("body", ".quiet", ".prompts td", "#risk", ".lead", ".counts td")
    before = [size(browser, place) for place in places]
    browser.execute_script("document.documentElement.style.setProperty('font-size', '32px')")
    assert [size(browser, place) for place in places] == pytest.approx([2 * was for was in before])


@pytest.mark.parametrize(("width", "drawn"), [(360, False), (820, True), (1280, True)])
def test_strips_are_explained_where_they_are_shown(read, width, drawn):
    browser = read([contents(IDS)], width)
    all_of(browser, "summary")[0].click()
    assert all_of(browser, ".prompts td .strip")[0].is_displayed() is drawn
    assert ("A dot and its line" in all_of(browser, "details.printed")[0].text) is drawn


def test_long_names_stay_in_their_cells(read):
    browser = read([contents(["harmful_behaviours/standard-of-2026/fold_a_boat-0123"])], 360)
    browser.execute_script(
        "const pill = document.querySelector('.state'); pill.className = 'state contradicted';"
        "pill.textContent = 'contradicted'"
    )
    for inner in (".state", ".open"):
        over = "const e = document.querySelector(arguments[0]), cell = e.closest('td, th');"
        over += "return e.getBoundingClientRect().right - cell.getBoundingClientRect().right"
        assert browser.execute_script(over, inner) <= 0
