"""The page of a run as a file and as a small server; in a browser, where Playwright and Chromium are installed."""

import http.client
import json
import re
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

import branchwork as bw
from branchwork.datasets.batches import normalise
from branchwork.errors import ExportError, RunError
from branchwork.graph.branching import read_branches
from branchwork.page.build import _assemble


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    return Path(bw.export(run.folder, to="html", out=tmp_path_factory.mktemp("page") / "net.html").file)


def content_of(html):
    text = html.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)[1].replace("<\\/", "</"))


def test_the_file_is_whole_small_and_asks_for_nothing(html):
    text = html.read_text(encoding="utf-8")
    assert len(text) < 800_000 and "default-src 'none'" in text
    outside = re.sub(r'id="page-data">.*?</script>', "", text, flags=re.DOTALL).replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert not re.search(
        r"https?://|@import|url\(|<link|<iframe| src=|fetch\(|XMLHttpRequest|WebSocket|localStorage", outside
    )


def test_the_page_has_what_explain_measured(run, html):
    page, explanation = content_of(html), bw.explain(run.folder, images=2000)
    by_name = {(page["nodes"][join["node"]]["name"], b["name"]): b for join in page["joins"] for b in join["branches"]}
    assert {(b.join, b.branch) for b in explanation.branches} == set(by_name)
    for branch in explanation.branches:
        found = by_name[branch.join, branch.branch]["lost"]
        assert found["zero"] == [branch.lost_by_zero, *branch.lost_by_zero_interval]
        assert found["mean"] == [branch.lost_by_mean, *branch.lost_by_mean_interval]


def test_the_slots_of_a_branch_are_what_its_join_reads(run, html):
    branched = read_branches(bw.load_run(run.folder).net, (1, 28, 28))
    for join in content_of(html)["joins"]:
        name = content_of(html)["nodes"][join["node"]]["name"]
        read = branched.graph.nodes[name].args
        for branch in join["branches"]:
            assert [read[slot] for slot in branch["slots"]] == list(branched.entries[name][branch["name"]])


def test_what_cannot_be_written_is_said(run, html, refused, tmp_path):
    assert "already exists" in refused("export", run.folder, "--to", "html", "--out", html)
    assert "must end in .html" in refused("export", run.folder, "--to", "html", "--out", "net.onnx")
    assert "a page needs a run" in refused("export", "inception", "--to", "html")
    with pytest.raises(ExportError, match="leave out --data"):
        bw.export(run.folder, to="html", data="sample")
    with pytest.raises(RunError, match="holds no run"):
        bw.ui(tmp_path)


def get(address, path="/", host=None):
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_server_gives_the_page_to_this_machine_alone(run):
    with bw.ui(run.folder) as server:
        port = urlsplit(server.address).port
        status, text = get(server.address)
        assert status == 200 and 'id="page-data"' in text
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1:1", "localhost"):
            assert get(server.address, host=host)[0] == 403
        assert get(server.address, host=f"localhost:{port}")[0] == 200
        assert get(server.address, "/../../etc/passwd")[0] == 404
        with pytest.raises(RunError, match=f"port {port} is taken"):
            bw.ui(run.folder, port=port)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_folder_of_runs_is_a_list(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "all/one")
    shutil.copytree(run.folder, tmp_path / "all/two & three")
    (tmp_path / "all/two & three/model.json").write_text("{}")
    with bw.ui(tmp_path / "all") as server:
        status, text = get(server.address)
        assert status == 200 and 'href="/one"' in text and "two &amp; three" in text
        assert get(server.address, "/one")[0] == 200
        status, text = get(server.address, "/two%20%26%20three")
        assert status == 500 and "damaged" in text


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def opened(browser, html):
    context = browser.new_context(viewport={"width": 1300, "height": 900}, locale="en-US")
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(html.resolve().as_uri())
    yield page
    assert page.problems == [] and [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    context.close()


def logits(page):
    return [float(text.split()[0]) for text in page.locator("#bars .logit").all_inner_texts()]


def expected(run, index, change=lambda node, value: value):
    """The logits of test image `index`, with the value of a node changed where its join reads it."""
    trained = bw.load_run(run.folder)
    data = bw.load_data(trained.model.data)
    image = normalise(data.test.images[index : index + 1], trained.model.mean, trained.model.std)
    branched = read_branches(trained.net, (1, 28, 28))
    with torch.no_grad():
        _, entering = branched.run_to_joins(image)
        join = list(branched.entries)[-1]
        changed = {name: [change(name, tensor) for tensor in tensors] for name, tensors in entering[join].items()}
        return branched.run_from_join(join, changed, image)[0].tolist()


def test_a_test_image_gets_torch_s_logits_with_every_branch_and_without_one(opened, run, html):
    data = bw.load_data("sample")
    first = int((data.test.labels == 0).nonzero()[0, 0])  # the page's first example
    opened.locator("#samples button").first.click()
    opened.wait_for_function("document.querySelectorAll('#bars .bar').length === 10")
    assert logits(opened) == pytest.approx(expected(run, first), abs=0.06)
    name = list(read_branches(bw.load_run(run.folder).net, (1, 28, 28)).entries)[-1]
    opened.locator(f"svg g[aria-label='{name}']").dispatch_event("click")
    opened.locator(".switch", has_text="shortcut").locator("input[type=checkbox]").uncheck()
    opened.wait_for_timeout(200)
    off = expected(run, first, lambda branch, value: value * (branch != "shortcut"))
    assert logits(opened) == pytest.approx(off, abs=0.06)
    assert opened.locator("#ledger-rows tr").count() == 1


def test_what_is_drawn_is_read_and_every_pixel_is_worked_out(opened):
    box = opened.locator("#pad").bounding_box()
    opened.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    opened.mouse.down()
    opened.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=6)
    opened.mouse.up()
    opened.wait_for_function("document.querySelectorAll('#bars .bar').length === 10")
    assert opened.locator("#answer").inner_text().startswith("1,")
    opened.locator("svg g[aria-label='rblock1.residual.conv2']").dispatch_event("click")
    big = opened.locator(".big").bounding_box()
    opened.mouse.move(big["x"] + 2, big["y"] + 2)
    text = opened.locator(".numbers").inner_text()
    assert "Dashed numbers lie outside the map" in text
    value = float(re.search(r"row 0, column 0: (\S+)", text)[1])
    total, bias = map(float, re.search(r"(\S+) \+ (\S+) \(bias\)", text).groups())
    assert total + bias == pytest.approx(value, abs=0.02)
    assert opened.locator("#field").is_visible()


def test_chinese_narrow_dark_and_the_tour(browser, html):
    context = browser.new_context(viewport={"width": 360, "height": 740}, locale="zh-CN", color_scheme="dark")
    page = context.new_page()
    page.goto(html.resolve().as_uri())
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.evaluate("document.documentElement.scrollWidth") <= 361, "nothing sticks out to the right"
    page.locator("#start-tour").click()
    count = len(content_of(html)["tour"])
    for step in range(count):
        assert page.locator("#tour").inner_text().startswith(f"{step + 1} / {count}")
        page.locator("#tour .primary").click()
    assert page.locator("#tour").is_hidden()
    context.close()


def test_a_page_that_does_not_agree_says_so(browser, html, tmp_path):
    content = content_of(html)
    content["golden"]["nodes"][-1]["values"][0] += 1
    (tmp_path / "wrong.html").write_text(_assemble(content, "wrong"), encoding="utf-8")
    page = browser.new_page(locale="en-US")
    page.goto((tmp_path / "wrong.html").as_uri())
    assert "do not trust" in page.locator("#warning").inner_text()
    assert page.locator("#pad").count() == 0
    page.close()
