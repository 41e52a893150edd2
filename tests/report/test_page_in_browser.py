"""The report page as a reader has it: opened from disk in a browser, by mouse and by keyboard."""

import json
import re
import shutil
from pathlib import Path

import pytest
from fabricated import HOSTILE

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
THEMES = ("light", "dark")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium")


@pytest.fixture(scope="module")
def arms(summary):
    return {arm["arm"]: arm for arm in summary["arms"]}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page at a width and in a theme; what it says and asks for is in ``told``."""
    contexts = []

    def open_(width=1280, theme="light", bypass_csp=False):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=theme, bypass_csp=bypass_csp
        )
        contexts.append(context)
        page = context.new_page()
        page.told = []
        page.on("console", lambda message: page.told.append(message.text))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("request", lambda request: page.told.append(request.url[:200]))
        page.goto((report / "index.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def page(opened):
    return opened()


def numbers(text):
    """Every number of a text, in order; a factor's ``x`` and a unit's letter fall off."""
    return [float(found.replace(",", "")) for found in re.findall(r"[-+]?\d[\d,]*\.?\d*", text)]


def is_shown(text, *expected):
    """Asserts that the text has these numbers and no others, as far as it spells them out."""
    spelled = re.findall(r"[-+]?\d[\d,]*\.?\d*", text)
    assert len(spelled) == len(expected), f"{text!r} against {expected}"
    for word, value in zip(spelled, expected, strict=True):
        places = len(word.partition(".")[2])
        # half a unit of the last place, and a sliver for the rounding of the comparison itself
        assert float(word.replace(",", "")) == pytest.approx(value, abs=0.5001 * 10**-places), text


def around(estimate, scale=1.0):
    return [scale * estimate["low"], scale * estimate["high"]]


def table_of(page, selector):
    """Heading -> row's name -> cell, of a table."""
    head, *body = page.eval_on_selector_all(
        f"{selector} tr",
        "rows => rows.map(row => "
        "[...row.cells].map(cell => cell.textContent.replace(/\\s+/g, ' ')))",
    )
    return {
        name: {row[0]: row[place] for row in body} for place, name in enumerate(head) if place > 0
    }


def titled(page, title):
    return table_of(page, f".wide[aria-label={json.dumps(title)}] table")


def test_page_loads_from_disk_in_silence_and_asks_for_nothing(page, report):
    page.evaluate("document.querySelectorAll('img').forEach(img => { img.loading = 'eager' })")
    page.wait_for_timeout(300)
    asked = [line for line in page.told if not line.startswith("data:")]
    assert asked == [(report / "index.html").as_uri()]
    assert page.title().startswith("Report of ")


def test_verdict_has_the_figures_of_the_report(page, arms):
    said = page.locator(".verdicts > li")
    assert said.count() == 2
    for place, name in enumerate(("tgate", "deep")):
        arm, baseline = arms[name], arms["baseline"]
        change = arm["change"]["prompt_accuracy"]
        sentence = said.nth(place).locator(".says").inner_text()
        enough = [float(n.replace(",", "")) for n in re.findall(r"about ([\d,]+) would", sentence)]
        failed = [arm["errors"], arm["images"] + arm["errors"]] if arm["errors"] else []
        is_shown(
            sentence,
            arm["speedup"],
            *around(arm["speedup_interval"]),
            100 * change["value"],
            *around(change, 100),
            *enough,
            *failed,
        )
        mine, theirs = arm["usd_per_1000_images"], baseline["usd_per_1000_images"]
        ends = [theirs * (1 - 1 / arm["speedup_interval"][end]) for end in ("low", "high")]
        saving = said.nth(place).locator(".also span").inner_text()
        is_shown(saving, theirs - mine, *ends, 1000, mine, theirs)
        stands = [word.split() for word in said.nth(place).locator(".mark").all_inner_texts()]
        counted = {words[3]: int(words[1]) for words in stands}
        expected = {}
        for one in arm["thresholds"]:
            key = ("passed" if one["passed"] else "failed") if one["decided"] else "undecided"
            expected[key] = expected.get(key, 0) + 1
        assert counted == expected
    assert {"passed", "failed", "undecided"} <= {
        kind for text in page.locator(".mark").all_inner_texts() for kind in text.split()
    }


def test_tables_have_the_figures_of_the_report(page, arms):
    speed = titled(page, "Speed and cost")
    for name, arm in arms.items():
        is_shown(speed["images"][name], arm["images"])
        is_shown(speed["errors"][name], arm["errors"])
        rate = arm["images_per_second_per_worker"]
        is_shown(
            speed["images/s per worker [95% CI]"][name],
            rate,
            *around(arm["images_per_second_interval"]),
        )
        interval = [] if arm["is_baseline"] else around(arm["speedup_interval"])
        is_shown(speed["speed-up [95% CI]"][name], arm["speedup"], *interval)
        is_shown(speed["MACs saved"][name], 100 * arm["macs_saved"])
        for heading, key in (
            ("MACs per image, attention included", "macs_per_image_with_attention"),
            ("MACs per image, published convention", "macs_per_image"),
        ):
            is_shown(speed[heading][name], arm[key] / 1e9)
        for heading, key in (
            ("billed", "usd_per_1000_images_billed"),
            ("marginal", "usd_per_1000_images"),
        ):
            is_shown(speed[f"$ per 1,000 images, {heading}"][name], arm[key])
    pictures = titled(page, "Quality, image by image")
    for name in ("tgate", "deep"):
        arm = arms[name]
        for metric, heading in (("psnr", "PSNR (dB) [95% CI]"), ("ssim", "SSIM [95% CI]")):
            shown = [arm["paired"][metric], *around(arm["intervals"][metric])]
            is_shown(pictures[heading][name], *shown)
        is_shown(pictures["prompt accuracy"][name], 100 * arm["prompt_accuracy"])
        change = arm["change"]["prompt_accuracy"]
        is_shown(
            pictures["accuracy change [95% CI]"][name],
            100 * change["value"],
            *around(change, 100),
            change["gained"],
            change["lost"],
        )


def test_times_of_workers_are_left_out_where_nobody_noted_them(page, summary):
    assert summary["workers"] is None
    assert page.locator("text=Where the workers' time went").count() == 0


def plot_rows(page, name):
    return page.eval_on_selector_all(
        f"#plot-{name} tbody tr", "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )


def test_figures_of_plots_are_those_of_the_report(page, arms):
    for row in plot_rows(page, "stages"):
        seconds = [
            arms[row[0]]["seconds_per_image"][key] for key in ("denoise", "decode", "encode")
        ]
        for text, value in zip(row[1:], [*seconds, sum(seconds)], strict=True):
            is_shown(text, value)
    for name, speedup, change in plot_rows(page, "frontier-prompt_accuracy_change")[1:]:
        found = arms[name]["change"]["prompt_accuracy"]
        is_shown(speedup, arms[name]["speedup"], *around(arms[name]["speedup_interval"]))
        counts = (found["gained"], found["lost"])
        is_shown(change, 100 * found["value"], *around(found, 100), *counts)
    for name, worker, rate, images in plot_rows(page, "workers"):
        timed = arms[name]["by_worker"][worker]
        is_shown(rate, timed["images"] / timed["seconds"])
        is_shown(images, timed["images"])
    rates = [
        (name, point["images"] / point["seconds"])
        for name, arm in arms.items()
        for point in arm["course"]
    ]
    shown = plot_rows(page, "course")
    assert len(shown) == len(rates)
    for row, (name, rate) in zip(shown, rates, strict=True):
        assert row[0] == name
        is_shown(row[2], rate)
    for name, lost, gained, same, _ in plot_rows(page, "changed-prompt_accuracy"):
        found = arms[name]["change"]["prompt_accuracy"]
        assert [int(lost), int(gained)] == [found["lost"], found["gained"]]
        assert int(same) == found["count"] - found["lost"] - found["gained"]
    for metric in ("psnr", "ssim"):
        for name in ("tgate", "deep"):
            held = arms[name]["spread"][metric]
            shown = [int(row[2]) for row in plot_rows(page, f"spread-{metric}") if row[0] == name]
            assert shown == [count for count in held["counts"] if count]


def width_of(page, gid):
    return page.locator(f"#{gid} path").first.evaluate("path => path.getBBox().width")


def test_bars_are_as_long_as_their_figures(page, arms):
    names = list(arms)
    unit = width_of(page, "stages-bar-0-denoise") / arms["baseline"]["seconds_per_image"]["denoise"]
    for line, name in enumerate(names):
        for stage in ("denoise", "decode", "encode"):
            drawn = width_of(page, f"stages-bar-{line}-{stage}")
            assert drawn / unit == pytest.approx(
                arms[name]["seconds_per_image"][stage], rel=0.01, abs=1e-5
            )
    lost = width_of(page, "changed-prompt_accuracy-changed-0-lost")
    both = [arms[name]["change"]["prompt_accuracy"] for name in ("tgate", "deep")]
    other = width_of(page, "changed-prompt_accuracy-changed-1-lost")
    shares = [change["lost"] / change["count"] for change in both]
    assert lost * shares[1] == pytest.approx(other * shares[0], rel=0.02, abs=0.05)


def test_labels_of_plots_are_text_with_the_figures(page, arms):
    texts = page.locator("#plot-stages svg text").all_text_contents()
    for name, arm in arms.items():
        assert name in texts
        assert f"{sum(arm['seconds_per_image'].values()):.3g}" in texts
    changed = page.locator("#plot-changed-prompt_accuracy svg text").all_text_contents()
    assert f"{arms['tgate']['change']['prompt_accuracy']['lost']} lost" in changed


def test_heading_explains_itself_on_hover_and_on_focus(page):
    term = page.locator(".term", has_text="PSNR").first
    tip = page.locator("#tip")
    assert tip.is_hidden()
    term.hover()
    assert "pixel by pixel" in tip.inner_text()
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    term.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    described = page.eval_on_selector_all(
        ".term",
        "terms => terms.map(term => "
        "document.getElementById(term.getAttribute('aria-describedby')).textContent.length)",
    )
    assert min(described) > 10
    headings = page.locator("#tables thead th").count()
    assert len(described) == headings  # every column of a run's figures is explained


def shown_cards(page):
    return page.eval_on_selector_all(
        ".card:not([hidden])", "cards => cards.map(card => card.dataset.text)"
    )


def test_search_leaves_the_prompts_with_the_words(page):
    everything = shown_cards(page)
    page.get_by_label("Search prompts").click()
    page.keyboard.type("|| C")
    assert shown_cards(page) == [f"pipes {HOSTILE['pipes']}"]
    assert page.locator(".gallery output").inner_text() == f"1 of {len(everything)} prompts"
    page.get_by_label("Search prompts").fill("")
    assert shown_cards(page) == everything


def order_of(page, key, arm):
    return page.eval_on_selector_all(
        ".card",
        f"cards => cards.map(card => card.querySelector('figure[data-arm={arm}]').dataset.{key})",
    )


def test_cards_are_ordered_by_what_changed_most_and_what_got_worst(page):
    page.locator("[name=arm]").select_option("tgate")
    for key, label in (("changed", "most changed first"), ("worse", "worst first")):
        page.locator("[name=order]").select_option(label=label)
        found = [float(value) for value in order_of(page, key, "tgate") if value is not None]
        assert len(found) > 20
        assert found == sorted(found, reverse=True)
    assert page.locator("figure[data-arm=deep]:visible").count() == 0


def test_order_by_keyboard_and_shuffle(page):
    order = page.locator("[name=order]")
    order.focus()
    for _ in range(3):  # to the last: as the prompts
        page.keyboard.press("ArrowDown")
    assert order.input_value() == "prompts"
    before = shown_cards(page)
    ids = [text.split()[0] for text in before if re.match(r"p\d\d ", text)]
    assert ids == sorted(ids)
    page.locator("[name=shuffle]").focus()
    page.keyboard.press("Enter")
    after = shown_cards(page)
    assert sorted(after) == sorted(before)
    assert after != before


def split(page):
    return page.locator(".stage").evaluate("stage => stage.style.getPropertyValue('--split')")


def test_picture_is_enlarged_flipped_and_closed_by_mouse(page):
    figure = page.locator("figure[data-arm=tgate]:visible").first
    figure.locator(".zoom").click()
    dialog = page.locator("#large")
    assert dialog.is_visible()
    under, over = dialog.locator(".stage img").all()
    assert over.get_attribute("src") == figure.locator("img").get_attribute("src")
    assert under.get_attribute("alt").startswith("baseline, prompt ")
    assert over.bounding_box()["width"] > 2 * figure.locator("img").bounding_box()["width"]
    assert split(page) == "50%"
    dialog.locator(".stage").click()
    assert split(page) == "100%"  # the baseline alone
    dialog.locator(".stage").click()
    assert split(page) == "0%"
    slider = dialog.locator("[type=range]").bounding_box()
    page.mouse.click(slider["x"] + slider["width"] / 4, slider["y"] + slider["height"] / 2)
    assert float(split(page).rstrip("%")) == pytest.approx(25, abs=3)
    first = dialog.locator("h2").inner_text()
    dialog.get_by_role("button", name="Next").click()
    assert dialog.locator("h2").inner_text() != first
    dialog.get_by_role("button", name="Previous").click()
    assert dialog.locator("h2").inner_text() == first
    dialog.get_by_role("button", name="Close").click()
    assert dialog.is_hidden()


def test_picture_is_enlarged_flipped_and_closed_by_keyboard(page):
    zoom = page.locator("figure[data-arm=deep] .zoom:visible").first
    zoom.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#large")
    assert dialog.is_visible()
    page.keyboard.press("ArrowRight")
    assert split(page) == "51%"
    page.keyboard.press("f")
    assert split(page) == "100%"
    page.keyboard.press("f")
    assert split(page) == "0%"
    first = dialog.locator("h2").inner_text()
    page.keyboard.press("n")
    assert dialog.locator("h2").inner_text() != first
    page.keyboard.press("p")
    assert dialog.locator("h2").inner_text() == first
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert zoom.evaluate("button => button === document.activeElement")


def test_pictures_are_decoded_when_they_come_into_view(page):
    states = page.eval_on_selector_all(
        ".card img", "all => all.map(img => [img.loading, img.decoding])"
    )
    assert set(map(tuple, states)) == {("lazy", "async")}


def test_hostile_prompts_and_errors_show_as_text(page):
    for name, text in HOSTILE.items():
        card = page.locator(f'.card[data-text^="{name} "]')
        assert card.locator(".prompt").evaluate("p => p.textContent") == text
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None
    arabic = page.locator('.card[data-text^="right-to-left"] .prompt')
    assert arabic.evaluate("p => getComputedStyle(p).direction") == "rtl"
    assert "ValueError: <b>no</b> image" in page.locator("#errors").inner_text()


def test_broken_pictures_are_named(page, arms):
    (row,) = arms["deep"]["broken_rows"]
    assert (
        f"deep, prompt {row['prompt_id']}: {row['broken']}" in page.locator("#errors").inner_text()
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_never_wider_than_its_window(opened, width):
    page = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
          .filter(one => !one.closest('.wide, pre, svg') && one.checkVisibility()
            && one.getBoundingClientRect().right > innerWidth + 1)
          .map(one => one.outerHTML.slice(0, 120))"""
    )
    assert beyond == []


CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const found = channels(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || one.closest('script, style, dialog:not([open])')) continue;
    if (!one.checkVisibility()) continue;
    const style = getComputedStyle(one);
    const colour = one.closest('svg') ? style.fill : style.color;
    const [a, b] = [luminance(channels(colour)), luminance(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, text.slice(0, 60)]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_what_is_behind_it(opened, theme):
    page = opened(theme=theme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = page.evaluate(CONTRAST)
    assert len(found) > 300
    assert [one for one in found if one[0] < 4.5] == []


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious(opened, theme):
    page = opened(theme=theme, bypass_csp=True)
    page.add_script_tag(path=str(AXE))
    for large in (False, True):
        if large:
            page.locator(".zoom:visible").first.click()
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 10
        grave = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == []


def test_switch_turns_the_page_dark_and_back(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.locator("#theme").click()
    assert page.evaluate(paper) != light
    assert page.locator("#theme").inner_text() == "Light"
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(paper) == light


def test_paper_has_the_explanations_and_no_controls(opened):
    page = opened(theme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".tools, nav, #theme").evaluate_all(
        "all => all.every(one => !one.checkVisibility())"
    )
    assert page.locator(".terms dd").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_settings_on_the_page_are_a_config_that_makes_the_same_run(page, report):
    import yaml

    from tgate_batch import config
    from tgate_batch.output.run import load_run

    shown = yaml.safe_load(page.locator("#config").evaluate("code => code.textContent"))
    held = load_run(str(report.parent)).config
    assert config.parse(shown) == held
