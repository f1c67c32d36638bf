"""Draw the learning curves of the real runs on Fashion-MNIST that the README names, from docs/fashion-mnist/runs.json.

Run it as `python scripts/draw_training.py`; it writes curves.svg and curves.zh.svg beside that file, the same bytes
each time. `python scripts/draw_training.py RUN…` first takes the figures of these runs' folders into it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from draw_collapse import BLUE, FAINT, INK, LANGUAGES, ORANGE, PAPER, STYLE, save
from matplotlib import rc_context
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs/fashion-mnist"
RUNS = FOLDER / "runs.json"
NAMES = {"resnet20": ("ResNet-20", BLUE), "googlenet": ("GoogLeNet", ORANGE)}


def take(folders: Sequence[str]) -> None:
    """Read the figures of finished runs from their folders."""
    kept = []
    for folder in map(Path, folders):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        named = ("net", "data", "seed", "epochs", "train_images", "train_seconds", "test_accuracy", "test_interval")
        about = {key: result[key] for key in (*named, "threads", "machine", "commit")}
        curves = [[round(loss, 4) for loss in epoch["loss_curve"]] for epoch in epochs]
        kept.append({**about, "train_loss": [round(epoch["train_loss"], 4) for epoch in epochs], "loss_curve": curves})
    RUNS.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def draw(figure: Figure, runs: Sequence[dict[str, Any]], zh: bool) -> None:
    axes = figure.add_subplot()
    for run in runs:
        name, colour = NAMES[run["net"]]
        fine = np.concatenate(run["loss_curve"])
        at = np.concatenate([i + (np.arange(len(c)) + 0.5) / len(c) for i, c in enumerate(run["loss_curve"])])
        axes.plot(at, fine, color=colour, alpha=0.35, linewidth=0.7)
        axes.plot(np.arange(run["epochs"]) + 0.5, run["train_loss"], color=colour, linewidth=2)
        accuracy = f"{run['test_accuracy']:.2%}"
        words = f"{name}：测试准确率 {accuracy}" if zh else f"{name}: test accuracy {accuracy}"
        axes.annotate(
            words, (run["epochs"] - 0.5, run["train_loss"][-1]), xytext=(0, -22), textcoords="offset points",
            ha="center" if run["epochs"] < 15 else "right", va="top", color=INK, fontweight="bold",
        )  # fmt: skip
    axes.set_yscale("log")
    most = max(run["epochs"] for run in runs)
    axes.set(xlim=(0, most + 0.3), ylim=(0.07, 1.5), xticks=range(0, most + 1, 2))
    axes.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    axes.minorticks_off()
    axes.set_xlabel("轮" if zh else "epoch")
    axes.set_ylabel("训练损失" if zh else "training loss")
    axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def main(folder: Path = FOLDER) -> None:
    runs = json.loads(RUNS.read_text(encoding="utf-8"))
    for language in LANGUAGES:
        zh = language == "zh"
        with rc_context(STYLE):
            figure = Figure(figsize=(8.2, 3.6), facecolor=PAPER, layout="constrained")
            draw(figure, runs, zh)
            title = "Fashion-MNIST 上的训练损失" if zh else "Training loss on Fashion-MNIST"
            save(figure, title, folder, "curves", language)


if __name__ == "__main__":
    if sys.argv[1:]:
        take(sys.argv[1:])
    main()
