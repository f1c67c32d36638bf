"""The page of a run as a file and as a small server; in a browser, where Playwright and Chromium are installed."""

import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import torch
from helpers.firefox import Firefox
from PIL import Image, ImageDraw

import branchwork as bw
from branchwork.cli.export import page_parts
from branchwork.datasets.batches import normalise
from branchwork.errors import ExportError, RunError
from branchwork.graph.branching import read_branches
from branchwork.page.build import ExportedPage, _assemble
from branchwork.training.predict import read_image

TINY = bw.course().but({"epochs": 1, "batch_size": 500})


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    return Path(bw.export(run.folder, to="html", out=tmp_path_factory.mktemp("page") / "net.html").file)


@pytest.fixture(scope="module")
def branching(sample, tmp_path_factory):
    recipe = bw.fast("inception", 6000).but({"epochs": 1})
    return bw.train("inception", data=sample, recipe=recipe, out=tmp_path_factory.mktemp("runs") / "inception")


@pytest.fixture(scope="module")
def pair(branching, run, tmp_path_factory):
    """The page of two runs."""
    path = tmp_path_factory.mktemp("page") / "both.html"
    return Path(bw.export(branching.folder, to="html", options=bw.ExportOptions(beside=run.folder), out=path).file)


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
    (page,), explanation = content_of(html)["nets"], bw.explain(run.folder, images=2000)
    by_name = {(page["nodes"][join["node"]]["name"], b["name"]): b for join in page["joins"] for b in join["branches"]}
    assert {(b.join, b.branch) for b in explanation.branches} == set(by_name)
    for branch in explanation.branches:
        found = by_name[branch.join, branch.branch]["lost"]
        assert found["zero"] == [branch.lost_by_zero, *branch.lost_by_zero_interval]
        assert found["mean"] == [branch.lost_by_mean, *branch.lost_by_mean_interval]


def test_the_slots_of_a_branch_are_what_its_join_reads(run, html):
    branched = read_branches(bw.load_run(run.folder).net, (1, 28, 28))
    (net,) = content_of(html)["nets"]
    for join in net["joins"]:
        name = net["nodes"][join["node"]]["name"]
        read = branched.graph.nodes[name].args
        for branch in join["branches"]:
            assert [read[slot] for slot in branch["slots"]] == list(branched.entries[name][branch["name"]])


def test_what_cannot_be_written_is_said(run, html, small, refused, tmp_path):
    assert "already exists" in refused("export", run.folder, "--to", "html", "--out", html)
    assert "must end in .html" in refused("export", run.folder, "--to", "html", "--out", "net.onnx")
    assert "a page needs a run" in refused("export", "inception", "--to", "html")
    assert "leave out --data" in refused("export", run.folder, "--to", "html", "--data", "sample")
    assert "a page has no --no-fuse" in refused("export", run.folder, "--to", "html", "--precision", "bf16")
    assert "add --to html" in refused("export", run.folder, "--beside", run.folder)
    with pytest.raises(RunError, match="holds no run"):
        bw.ui(tmp_path)
    smaller = replace(small, classes=("a", *small.classes[1:]))
    other = bw.train("residual", data=smaller, recipe=TINY, out=tmp_path / "other", report=False)
    with pytest.raises(ExportError, match=r"cannot share a page: one takes 1×28×28 \(0, 1, 2.*other 1×28×28 \(a, 1"):
        bw.export(run.folder, to="html", options=bw.ExportOptions(beside=other.folder))


def test_a_large_file_is_said():
    assert "mail may refuse it" in page_parts(ExportedPage("net", "html", "net.html", 33_000_000))[1]


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


@pytest.fixture
def open_page(browser):
    """Open a file in the browser; nothing may be asked for, and nothing may go wrong, until the test ends."""
    contexts, problems = [], []

    def call(html, address="", **options):
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, "locale": "en-US"} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if is_outside(request.url) else None)
        page.goto(html.resolve().as_uri() + address)
        page.wait_for_selector("#samples button")
        return page

    yield call
    for context in contexts:
        context.close()
    assert problems == []


def is_outside(url):
    return not url.startswith(("file:", "data:"))


@pytest.fixture
def opened(open_page, html):
    return open_page(html)


def until(page, condition):
    """Wait until a condition holds: Playwright's own way needs `eval` in the page, which the page forbids."""
    wait(lambda: page.evaluate(condition))


def take_sample(page, number=0):
    page.locator("#samples button").nth(number).click()
    until(page, "document.querySelectorAll('#bars .bar').length >= 10")


def logits(page):
    return [float(text.split()[0].replace("−", "-")) for text in page.locator("#bars .logit").all_inner_texts()]


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
    take_sample(opened)
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
    until(opened, "document.querySelectorAll('#bars .bar').length === 10")
    assert opened.locator("#answer").inner_text().startswith("1,")
    opened.locator("svg g[aria-label='rblock1.residual.conv2']").dispatch_event("click")
    big = opened.locator(".big").bounding_box()
    opened.mouse.move(big["x"] + 2, big["y"] + 2)
    text = opened.locator(".numbers").inner_text()
    assert "Dashed numbers lie outside the map" in text
    text = text.replace("−", "-")
    value = float(re.search(r"row 0, column 0: (\S+)", text)[1])
    total, bias = map(float, re.search(r"(\S+) \+ (\S+) \(bias\)", text).groups())
    assert total + bias == pytest.approx(value, abs=0.02)
    assert opened.locator("#field").is_visible()


def test_a_picture_is_placed_as_predict_places_it(opened, run, tmp_path):
    picture = Image.new("L", (300, 400), 235)
    ImageDraw.Draw(picture).line([(90, 80), (200, 90), (120, 330)], fill=40, width=22)
    picture.save(tmp_path / "seven.png")
    opened.locator("#file").set_input_files(tmp_path / "seven.png")
    until(opened, "$state.state.pixels !== null")
    expected = read_image(tmp_path / "seven.png", bw.load_run(run.folder).model)
    assert opened.evaluate("[...$state.state.pixels]") == expected.flatten().tolist()


def test_what_is_no_picture_or_shows_nothing_is_said(opened, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    opened.locator("#file").set_input_files(tmp_path / "broken.png")
    until(opened, "document.querySelector('#problem').textContent.includes('cannot be read')")
    Image.new("L", (50, 50), 200).save(tmp_path / "empty.png")
    opened.locator("#file").set_input_files(tmp_path / "empty.png")
    until(opened, "document.querySelector('#problem').textContent.includes('No figure was found')")
    take_sample(opened)
    assert opened.locator("#problem").inner_text() == ""


def test_two_runs_on_one_picture_are_each_torch_s_and_a_switch_turns_its_own_net(
    open_page, pair, run, branching, sample
):
    page = open_page(pair)
    take_sample(page)
    first = int((sample.test.labels == 0).nonzero()[0, 0])
    both = logits(page)
    assert both[::2] == pytest.approx(expected(branching, first), abs=0.06)
    assert both[1::2] == pytest.approx(expected(run, first), abs=0.06)
    page.locator("svg g[aria-label='residual rblock2.add']").dispatch_event("click")
    page.locator(".switch", has_text="shortcut").locator("input[type=checkbox]").uncheck()
    page.wait_for_timeout(200)
    off = expected(run, first, lambda branch, value: value * (branch != "shortcut"))
    assert logits(page)[::2] == both[::2] and logits(page)[1::2] == pytest.approx(off, abs=0.06)
    page.locator("svg g[aria-label='inception conv1']").dispatch_event("click")
    assert page.locator("svg g.alone").count() == 0  # they share no layer but the input: dashes would tell nothing
    assert "residual has no layer of this name and shape" in page.locator("#detail").inner_text()


def test_layers_that_one_of_two_like_nets_has_alone_are_dashed(open_page, run, sample, tmp_path):
    recipe = bw.fast("residual", 6000).but({"epochs": 1, "fraction": 0.05})
    normed = bw.train("residual[norm=batch]", data=sample, recipe=recipe, out=tmp_path / "normed")
    options = bw.ExportOptions(beside=run.folder)
    page = open_page(Path(bw.export(normed.folder, to="html", options=options, out=tmp_path / "both.html").file))
    names = page.locator("svg g.alone").evaluate_all("boxes => boxes.map((box) => box.getAttribute('aria-label'))")
    assert {f"residual-batch rblock{number}.residual.norm2" for number in (1, 2)} <= set(names)
    assert not any("conv" in name or "fc" in name for name in names)


def test_what_branches_add_is_what_explain_finds_and_exact_after_the_last_activation(
    open_page, pair, branching, sample, tmp_path
):
    page = open_page(pair)
    take_sample(page, 3)
    page.locator("#ask-worth").click()
    text = page.locator("#worth").inner_text().replace("−", "-")
    number = int((sample.test.labels == 3).nonzero()[0, 0])
    Image.fromarray(sample.test.images[number, 0].numpy()).save(tmp_path / "three.png")
    (explained,) = bw.explain_pictures(branching.folder, tmp_path / "three.png")
    found = [float(value) for value in re.findall(r"^(?:b1|b5|b3|pool)\s+(\S+)$", text, flags=re.M)]
    assert found == pytest.approx([b.lost_blind for join in explained.joins for b in join.branches], abs=0.006)
    take_sample(page, 4)
    until(page, "document.querySelector('#worth').childElementCount === 0")  # that was the answer to another picture
    last = explained.joins[-1]
    assert float(re.search(r"add up to (\S+),", text)[1]) == pytest.approx(last.difference, abs=0.006)
    assert [b.lost_blind for b in last.branches] == pytest.approx([b.share for b in last.branches], abs=1e-3)


def test_all_convolutions_after_the_last_activation_are_one_table(open_page, pair):
    page = open_page(pair, "#step=6")
    page.wait_for_selector("#tour table")
    for sample in (0, 7):  # it is worked out anew for another picture
        take_sample(page, sample)
        page.wait_for_timeout(300)
        written, table = (
            [float(cell.replace("−", "-")) for cell in row.locator("td").all_inner_texts()[:-1]]
            for row in page.locator("#tour tr").all()[1:]
        )
        assert table == pytest.approx(written, abs=0.011)
        assert written == pytest.approx(logits(page)[::2], abs=1e-9)
    words = page.locator("#tour").inner_text()
    assert "7 convolutions" in words and "328,960 multiplies" in words and "3,200 multiplies" in words
    assert float(re.search(r"differ by (\S+) at most", words)[1]) < 1e-4


def test_the_address_keeps_what_is_shown_and_another_net_takes_only_the_picture(open_page, html, pair):
    page = open_page(html)
    take_sample(page, 4)
    page.locator("svg g[aria-label='rblock1.add']").dispatch_event("click")
    page.locator(".switch", has_text="shortcut").locator("input[type=checkbox]").uncheck()
    page.wait_for_timeout(200)
    address, shown = page.evaluate("location.hash"), logits(page)
    again = open_page(html, address)
    until(again, "document.querySelectorAll('#bars .bar').length === 10")
    assert logits(again) == shown and "rblock1.add" in again.locator("#detail").inner_text()
    other = open_page(pair, address)
    until(other, "document.querySelectorAll('#bars .bar').length === 20")
    assert other.evaluate("$state.views.every((view) => view.strength.size === 0)")
    assert other.evaluate("[...$state.state.pixels]") == page.evaluate("[...$state.state.pixels]")


def test_the_lanes_are_saved_with_their_maps(open_page, pair):
    page = open_page(pair)
    take_sample(page)
    for kind in ("svg", "png"):
        with page.expect_download() as download:
            page.locator(f"#save-{kind}").click()
        content = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename == f"inception-residual.{kind}"
        if kind == "svg":
            root = ElementTree.fromstring(content)
            assert len(root.findall("{http://www.w3.org/2000/svg}image")) == 2 and b"var(--" not in content
        else:
            width, height = Image.open(io.BytesIO(content)).size
            assert width > 1500 and height > 1500


def test_a_block_of_a_large_net_opens_and_half_precision_is_said(open_page, branching, sample, monkeypatch, tmp_path):
    monkeypatch.setattr("branchwork.page.content._MOST_BOXES", 20)
    monkeypatch.setattr("branchwork.page.content._HALF_ABOVE", 100_000)
    page = open_page(Path(bw.export(branching.folder, to="html", out=tmp_path / "net.html").file))
    take_sample(page)
    first = int((sample.test.labels == 0).nonzero()[0, 0])
    assert page.evaluate("[...$state.views[0].values.at(-1).data]") == pytest.approx(
        expected(branching, first), rel=0.01, abs=0.02
    )
    assert "rounded to half precision" in page.locator("footer").inner_text()
    assert page.locator("svg g.box").count() == 8, "a box for each of both modules"
    page.locator("svg g.box", has_text="incep1").dispatch_event("click")
    assert page.locator(".block svg g.box").count() == 10 and page.locator(".block h3").inner_text() == "incep1"
    page.locator("svg g.box", has_text="incep2").dispatch_event("click")
    assert page.locator(".block").count() == 1 and page.locator(".block h3").inner_text() == "incep2"


def test_a_reader_of_the_screen_can_use_it(open_page, pair, tmp_path):
    pack = ["npm", "pack", "--silent", "axe-core@4.11"]
    if shutil.which("npm") is None or subprocess.run(pack, capture_output=True, cwd=tmp_path).returncode:
        pytest.skip("needs axe-core from npm")
    with tarfile.open(next(tmp_path.glob("axe-core-*.tgz"))) as archive:
        axe = archive.extractfile("package/axe.min.js").read().decode()
    for scheme in ("light", "dark"):
        page = open_page(pair, "#step=5", color_scheme=scheme, bypass_csp=True)
        page.wait_for_selector("#worth .bar")
        page.add_script_tag(content=axe)
        found = page.evaluate(
            "axe.run().then((found) => found.violations.map((each) => [each.id, each.nodes[0].html]))"
        )
        assert found == []


def test_chinese_narrow_dark_and_the_tour(open_page, html):
    page = open_page(html, viewport={"width": 360, "height": 740}, locale="zh-CN", color_scheme="dark")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.evaluate("document.documentElement.scrollWidth") <= 361, "nothing sticks out to the right"
    page.locator("#start-tour").click()
    count = len(content_of(html)["nets"][0]["tour"])
    for step in range(count):
        until(page, f"document.querySelector('#tour').innerText.startsWith('{step + 1} / {count}')")
        page.locator("#tour .primary").click()
    until(page, "document.querySelector('#tour').hidden")


def test_without_javascript_one_sentence_says_so(browser, html):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(html.resolve().as_uri())
    assert "allow JavaScript" in page.locator("noscript").inner_text()
    context.close()


def test_firefox_opens_the_file_and_computes_the_same(html, run, tmp_path):
    if not (shutil.which("firefox-esr") or shutil.which("firefox")):
        pytest.skip("needs Firefox")
    with Firefox(tmp_path / "profile") as firefox:
        firefox.ask("WebDriver:Navigate", url=html.resolve().as_uri())
        wait(lambda: firefox.run("return document.querySelectorAll('#samples button').length"))
        firefox.run("document.querySelector('#samples button').click()")
        wait(lambda: firefox.run("return document.querySelectorAll('#bars .bar').length") == 10)
        texts = firefox.run("return [...document.querySelectorAll('#bars .logit')].map((each) => each.textContent)")
    data = bw.load_data("sample")
    found = [float(text.split()[0].replace("−", "-")) for text in texts]
    assert found == pytest.approx(expected(run, int((data.test.labels == 0).nonzero()[0, 0])), abs=0.06)


def wait(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_page_that_does_not_agree_says_so(browser, html, tmp_path):
    content = content_of(html)
    content["nets"][0]["golden"]["nodes"][-1]["values"][0] += 1
    (tmp_path / "wrong.html").write_text(_assemble(content, "wrong"), encoding="utf-8")
    page = browser.new_page(locale="en-US")
    page.goto((tmp_path / "wrong.html").as_uri())
    until(page, "document.querySelector('#warning').textContent.includes('do not trust')")
    assert page.locator("#pad").count() == 0
    page.close()
