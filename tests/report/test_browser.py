"""The page in a real browser: headless Chromium, whose driver is asked what it shows."""

import shutil
import warnings

import pytest

from tests.report.jobs import a_model, ended, events, reported

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
TEXT_CONTRAST, GRAPHICS_CONTRAST = 4.5, 3.0
"""What WCAG's level AA asks for."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser on a profile of its own."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver on this machine: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Selenium's own
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a classifier whose user is up to no good."""
    folder = tmp_path_factory.mktemp("jobs")
    evil = "<script>document.title = 'taken'</script><img src=http://127.0.0.1:1/x><a href=javascript:alert(1)>x</a>"
    told = list(ended(*events("binary_classifier"), best_epoch=2))
    return reported(folder, told, model=a_model("binary_classifier"), details={evil: evil}, reason=evil)


@pytest.fixture
def show(browser, page):
    """A function that opens the page and returns how to run JavaScript on it."""

    def show(width=1280, scheme="light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(f"file://{page}")
        return lambda script: browser.execute_script(f"return {script}")

    return show


def test_page__asks_for_nothing_and_runs_nothing(show, browser):
    ask = show()
    assert ask("document.title") == "first: Completed"
    assert ask("performance.getEntriesByType('resource').map(each => each.name)") == []
    assert ask("[document.scripts.length, document.images.length, document.links.length]") == [0, 0, 0]
    assert browser.get_log("browser") == []


def test_page__shows_its_plots_and_numbers(show):
    ask = show()
    titles = ask("[...document.querySelectorAll('figure h3')].map(each => each.textContent)")
    assert titles[:4] == [f"{name} after each epoch" for name in ("Log loss", "Accuracy", "F1", "AUC")]
    assert [title.split(" (")[0] for title in titles[4:]] == 2 * ["ROC curve", "Calibration", "Scores of each label"]
    plots = ask(
        "[...document.querySelectorAll('figure svg')].filter(each => each.checkVisibility()).map(each => "
        "[each.getAttribute('role'), each.getAttribute('aria-label'), each.getBoundingClientRect().width, "
        "each.querySelectorAll('path').length, each.querySelector('text').getBoundingClientRect().height])"
    )
    assert len(plots) == 7  # those of the validation rows are folded away
    for (role, label, width, paths, text), title in zip(plots, titles, strict=False):
        assert role == "img" and label.startswith(title) and len(label) > len(title) + 20
        assert width > 400 and paths > 5 and text >= 10
    assert ask("document.querySelector('.verdict').innerText").startswith("Log loss of the test rows is 0.4")
    assert ask("document.querySelectorAll('details tr').length") > 100
    assert ask("[...document.querySelectorAll('.track i')].some(each => each.getBoundingClientRect().width > 50)")
    headings = ask("[...document.querySelectorAll('h2')].map(each => each.innerText)")
    assert headings == [
        "Learning", "Scores of held-out rows", "Where the time went", "Workers", "Largest linear terms",
        "Hyperparameters", "Facts",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1280, 390])
def test_page__is_no_wider_than_its_window(show, width):
    ask = show(width)
    assert ask("document.documentElement.scrollWidth") <= width
    wide = 1 if width > 600 else 40  # a table may be pushed aside a little
    too_wide = f"[...document.querySelectorAll('.card')].filter(each => each.scrollWidth > each.clientWidth + {wide})"
    assert ask(f"{too_wide}.map(each => each.innerText)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours__can_be_told_from_what_is_behind_them(show, scheme):
    ask = show(scheme=scheme)

    def colour(name):
        return ask(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')").strip()

    assert (luminance(colour("page")) < 0.1) == (scheme == "dark")
    assert ask("getComputedStyle(document.body).color") == rgb(colour("ink"))
    for text in ("ink", "faint", "good", "note", "bad"):
        for behind in ("card", "page"):
            assert contrast(colour(text), colour(behind)) >= TEXT_CONTRAST, (text, behind)
    for level in ("good", "note", "bad"):
        assert contrast(colour("ink"), colour(f"{level}-back")) >= TEXT_CONTRAST
        assert contrast(colour(level), colour(f"{level}-back")) >= TEXT_CONTRAST
    for line in ("train", "validation", "test", "zero", "one"):
        assert contrast(colour(line), colour("card")) >= GRAPHICS_CONTRAST, line
    strokes = ask("[...new Set([...document.querySelectorAll('figure path')].map(e => getComputedStyle(e).stroke))]")
    assert {rgb(colour(name)) for name in ("train", "validation", "grid")} <= set(strokes)


def channels(colour):
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def rgb(colour):
    return f"rgb({', '.join(map(str, channels(colour)))})"


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in channels(colour))]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
