"""The page of a report in a browser: no error, no sideways scrolling, and the cursor reads what was logged."""

import json
import shutil

import pytest

from pretrain.report import write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
STEPS = 5000


def loss(step: int) -> float:
    return 9.0 if step == 3210 else 2.0 + 3.0 / step**0.5 + 0.01 * (step % 7)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two runs, the second of which logged half as often."""
    folder = tmp_path_factory.mktemp("runs")
    for name, every in (("one", 1), ("two", 2)):
        run = folder / name
        run.mkdir()
        lines = [
            {"step": step, "train/loss": loss(step) + every, "train/tokens_seen": 100 * step,
             "train/flops": 1e12 * step, "train/grad_norm": 1 / step, "perf/train_seconds": 0.5 * step,
             "perf/data_wait": 0.25,
             "odd <b>figure</b>": step % 3}
            for step in range(every, STEPS + 1, every)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "summary.json").write_text(json.dumps({"step": STEPS, "growth_stages": 1}))
        text = {"step": 10, "prompt": "a", "text": "a</script><b>bold</b><img src=x onerror=alert(1)>"}
        (run / "samples.jsonl").write_text(json.dumps(text) + "\n")
    return write_report([folder / "one", folder / "two"], folder / "out", window=1000)[2]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser, report, width=1200, scheme="light"):
    """The page in a window, and the list that its errors and requests go to."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url != report.as_uri() else None)
    page.goto(report.as_uri())
    page.wait_for_selector(".drawn")
    return page, wrong


@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (380, "dark"), (1200, "dark")])
def test_no_error_and_no_sideways_scrolling(browser, report, width, scheme):
    page, wrong = opened(browser, report, width, scheme)
    page.locator("details").first.evaluate("details => details.open = true")
    page.get_by_role("button", name="Time").click()
    page.get_by_role("button", name="one").click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#panels figure").count() >= 3
    assert wrong == []
    page.close()


def test_texts_of_others_run_nothing(browser, report):
    page, wrong = opened(browser, report)
    assert "</script><b>bold</b><img src=x" in page.locator(".sample pre").first.text_content()
    assert page.locator("b:has-text('bold'), b:has-text('figure'), img").count() == 0
    assert wrong == []
    page.close()


def cells(page, chart):
    """The rows of values that the cursor reads in a panel."""
    rows = chart.locator(".tip tr").all()
    return [[cell.text_content() for cell in row.locator("td").all()] for row in rows if row.locator("td").count()]


@pytest.mark.parametrize("axis", ["Tokens", "FLOPs", "Time", "Steps"])
def test_the_cursor_reads_what_was_logged(browser, report, axis):
    """Wherever it is: each value is that of the step beside it, and that step is where the cursor is."""
    page, _ = opened(browser, report)
    page.get_by_role("button", name=axis, exact=True).click()
    chart = page.locator("#panels figure").first
    box = chart.locator(".plot > svg").bounding_box()
    for part in (0.3, 0.55, 0.9):
        page.mouse.move(box["x"] + part * box["width"], box["y"] + 100)
        found = cells(page, chart)
        assert [row[0] for row in found] == ["one", "two"]
        for row, every in zip(found, (1, 2), strict=True):
            step = int(row[3].replace(",", ""))
            assert float(row[2]) == pytest.approx(loss(step) + every, abs=1e-4)
            within = [loss(s) + every for s in range(step, step - 10, -1) if s % every == 0 and s > step - 10]
            assert float(row[1]) == pytest.approx(sum(within) / len(within), abs=1e-4)
            place = (part * box["width"] - 58) / (box["width"] - 58 - 14)
            assert step == pytest.approx(place * STEPS, abs=STEPS / 50)
    page.close()


def test_keys_go_from_point_to_point_and_say_values(browser, report):
    page, _ = opened(browser, report)
    norm = page.locator("figure:has-text('Gradient norm')")
    norm.locator(".plot > svg").focus()
    page.keyboard.press("End")
    assert cells(page, norm)[0][1:] == ["2×10⁻⁴", "step 5,000"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#spoken").text_content() == "800 tokens: one 0.12500; two 0.12500"
    page.keyboard.press("Escape")
    assert norm.locator(".tip").is_hidden()
    page.close()


def test_dragging_looks_closer_and_a_peak_is_there(browser, report):
    page, _ = opened(browser, report)
    chart = page.locator("#panels figure").first
    box = chart.locator(".plot > svg").bounding_box()
    at = box["x"] + 58 + (box["width"] - 72) * 3210 / STEPS
    page.mouse.move(at - 40, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(at + 40, box["y"] + 90, steps=4)
    page.mouse.up()
    back = page.get_by_role("button", name="whole run")
    assert back.is_visible()
    page.mouse.move(box["x"] + 58 + (box["width"] - 72) / 2, box["y"] + 80)
    read = int(cells(page, chart)[0][3].replace(",", ""))
    assert read == pytest.approx(3210, abs=20)
    chart.locator(".plot > svg").focus()
    for _ in range(20):
        if (row := cells(page, chart)[0])[3] == "3,210":
            break
        page.keyboard.press("ArrowRight" if read < 3210 else "ArrowLeft")
    assert row[2:] == ["10", "3,210"]
    back.click()
    assert back.is_hidden()
    page.close()
