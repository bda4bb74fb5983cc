"""The page in a real browser: Debian's chromium and chromium-driver, driven by selenium."""

import shutil
import time

import pytest

from t3d.viewer.__main__ import main

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no browser (apt-get install chromium chromium-driver)",
)
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1400,900"),
)
ATTACKS = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--<script>window.hacked = 3</script>",
    '"><svg onload=window.hacked=4>',
    "${window.hacked = 5} `'\"\\ \u2028 &lt;b&gt;",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    def opened(*paths):
        main([*map(str, paths), "-o", str(tmp_path / "page.html")])
        started = time.perf_counter()
        browser.get((tmp_path / "page.html").as_uri())
        assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
        return time.perf_counter() - started

    return opened


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
    return browser.execute_script(script, selector)


WRITTEN = """
const tokens = [...document.querySelector(".pane").querySelectorAll(".token:not(.prompt)")];
const parts = tokens.flatMap((token) => [...token.childNodes]);
return parts.filter((part) => part.nodeType === Node.TEXT_NODE).map((part) => part.data).join("");
"""  # without the signs for line ends and parts of characters


def test_what_a_model_wrote_is_shown_and_never_run(browser, show, write_rollouts):
    path = write_rollouts("a.json", ATTACKS, question=[f"{attack} ?" for attack in ATTACKS])
    show(path, path)
    for attack in ATTACKS:
        assert browser.execute_script(WRITTEN) == attack
        assert texts(browser, "#question") == [f"{attack} ?"]
        press(browser, "\ue015")  # arrow down
    press(browser, "f")
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.images.length") == 0
    assert browser.get_log("browser") == []  # no error, and nothing that the page's policy had to stop


def test_the_steps_reveal_the_tokens(browser, show, write_rollouts):
    show(write_rollouts("a.json", ["5 groups of 4 make 20."]))
    total = len(texts(browser, ".token:not(.prompt)"))
    assert texts(browser, ".masked") == []
    press(browser, "\ue011")  # home
    assert len(texts(browser, ".masked")) == total
    for number in range(1, total + 1):
        press(browser, "\ue014")  # arrow right
        assert len(texts(browser, ".masked")) == total - number
    assert texts(browser, "#at") == [f"step {total} of {total}"]


def test_filters_search_and_figures(browser, show, write_rollouts):
    one = write_rollouts("a.json", ["first", "second", "third"], correctness=[[True], [False], [True]])
    two = write_rollouts("b.json", ["first", "other", "third"], correctness=[[True], [True], [False]])
    show(one, two)
    for name, count in {"all": 3, "wrong": 2, "lost": 1, "won": 1, "differ": 1, "right": 1, "cut": 0}.items():
        browser.execute_script("at('filter').value = arguments[0]; refilter()", name)
        assert texts(browser, "#count") == [f"{count} of 3"], name
    browser.execute_script("at('filter').value = 'all'; at('search').value = 'OTHER'; refilter()")
    assert texts(browser, "#count") == ["1 of 3"]
    press(browser, "f")
    assert "66.7 % of 3 responses" in texts(browser, "#figures")[0]


def test_what_is_said_of_a_token_goes_away_with_it(browser, show, write_rollouts):
    from selenium.webdriver.common.action_chains import ActionChains

    show(write_rollouts("a.json", ["5 groups of 4 make 20.", "second"]))
    token = browser.find_elements("css selector", ".token:not(.prompt)")[1]
    ActionChains(browser).move_to_element(token).perform()
    assert "token 2 of the response" in texts(browser, "#tip:not([hidden])")[0]
    press(browser, "\ue015")  # arrow down
    assert texts(browser, "#tip:not([hidden])") == []


def test_a_narrow_window_needs_no_scrolling_sideways(browser, show, write_rollouts):
    path = write_rollouts("a.json", ["5 groups of 4 make 20. " * 25])
    browser.set_window_size(390, 800)
    try:
        show(path, path)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return document.querySelector('.text').clientHeight") > 100
    finally:
        browser.set_window_size(1400, 900)


def test_light_and_dark(browser, show, write_rollouts):
    show(write_rollouts("a.json", ["ab"]))
    paper = "return getComputedStyle(document.querySelector('.pane')).backgroundColor"
    light = browser.execute_script(paper)
    press(browser, "t")
    assert browser.execute_script(paper) != light


def test_five_hundred_problems_open_within_two_seconds(browser, show, write_rollouts):
    path = write_rollouts("a.json", ["5 groups of 4 make 20. " * 25] * 500, question=[f"{n}?" for n in range(500)])
    assert show(path, path) < 2
