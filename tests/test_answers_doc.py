"""docs/answers.md and its Chinese counterpart: every figure of a study stands in the results that its command wrote."""

import json
import re
import statistics

import pytest
from conftest import ROOT

from branchwork.errors import NetError

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("answers*.md"))}
# What `branchwork study --json` wrote, run by run, each with seeds of its own.
STUDIES = {
    study: [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "docs/answers").glob(f"{study}-seed-*.json"))
    ]
    for study in ("branches", "bottleneck", "depth", "shortcuts")
}
VERDICTS = {"是": "yes", "否": "no", "尚无定论": "too close to call"}
both = pytest.mark.parametrize("name", TEXTS)


def percent(mean):
    return f"{100 * mean['mean']:.2f} ({100 * mean['low']:.2f}–{100 * mean['high']:.2f})"


def seconds(mean):
    return f"{mean['mean']:.1f} ({mean['low']:.1f}–{mean['high']:.1f})"


@both
def test_every_mean_with_an_interval_is_in_the_results(name):
    means = [
        mean for results in STUDIES.values() for one in results for row in one["rows"] for mean in row["means"].items()
    ]
    known = {(seconds if measure == "seconds" else percent)(mean) for measure, mean in means if mean is not None}
    shown = re.findall(r"\d+\.\d+ \(\d+\.\d+–\d+\.\d+\)", TEXTS[name])
    assert len(shown) > 80 and set(shown) <= known


@both
def test_the_verdicts_are_those_of_the_results(name):
    cells = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\|(.*)\|$", TEXTS[name], re.MULTILINE)]
    shown = [[VERDICTS.get(cell, cell) for cell in row] for row in cells]
    verdicts = [tuple(row[1:]) for row in shown if len(row) > 1 and set(row[1:]) <= set(VERDICTS.values())]
    questions = [zip(*(one["findings"] for one in runs), strict=True) for runs in STUDIES.values()]
    known = [tuple(finding["verdict"] for finding in findings) for group in questions for findings in group]
    assert sorted(verdicts) == sorted(known) and len(known) > 20


def test_no_run_contradicts_another():
    for first, *others in STUDIES.values():
        for other in others:
            assert not set(first["seeds"]) & set(other["seeds"])
            for a, b in zip(first["findings"], other["findings"], strict=True):
                assert a["question"] == b["question"] and {a["verdict"], b["verdict"]} != {"yes", "no"}


def test_the_table_of_select_is_that_of_its_benchmark():
    choices = json.loads((ROOT / "docs/answers/select.json").read_text(encoding="utf-8"))["choices"]
    names = {
        "select": "`select`",
        "without tuning": "the same without fine-tuning",
        "weights": "by the size of weights",
    }
    for method, name in names.items():
        (row,) = (row for row in re.findall(r"^\| (.*) \|$", TEXTS["answers.md"], re.M) if row.startswith(f"{name} |"))
        for size, cell in zip((3, 2, 1), row.split(" | ")[1:], strict=True):
            held = [choice for choice in choices if (choice["method"], len(choice["kept"])) == (method, size)]
            assert cell.startswith(f"{sum(choice['holds'] for choice in held)} of {len(held)}")
            assert all(" ".join(choice["kept"]) in cell or not cell.endswith(")") for choice in held)


@both
def test_what_select_costs_is_what_its_benchmark_measured(name):
    for file, way in (("select", "select"), ("select-found", "select, found")):
        costs = json.loads((ROOT / f"docs/answers/{file}.json").read_text(encoding="utf-8"))["costs"]
        for measure in ("steps", "steps times MACs", "seconds"):
            share = statistics.mean(one[way][measure] / one["table"][measure] for one in costs)
            assert f"{share:.1%}" in TEXTS[name]


@both
def test_the_message_about_branches_that_do_not_fit_is_the_one_that_is_shown(name):
    (code,), (shown,) = (
        re.findall(rf"^```{kind}\n(.*?)^```$", TEXTS[name], re.M | re.S) for kind in ("python", "text")
    )
    with pytest.raises(NetError) as raised:
        exec(compile(code, name, "exec"), {})
    assert str(raised.value) == shown.rstrip("\n")


def test_both_languages_have_the_same_commands_figures_and_pictures():
    english, chinese = TEXTS["answers.md"], TEXTS["answers.zh.md"]
    for pattern in (r"^```\w*\n(.*?)^```$", r"\d+\.\d+", r"\d[\d,]*,\d{3}", r"^(?:#+ |\|)"):
        one, other = (re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (english, chinese))
        assert sorted(one) == sorted(other)
    pictures = [re.findall(r"\]\((answers/\w+)(?:\.zh)?\.png\)", text) for text in (english, chinese)]
    assert pictures[0] == pictures[1] and len(pictures[0]) >= 5
    for text in (english, chinese):
        assert all((ROOT / "docs" / link).is_file() for link in re.findall(r"\]\(((?:answers/)?[\w.-]+)\)", text))
