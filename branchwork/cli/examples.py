"""The end of each verb's help: `--lang`, `--trust`, and two examples. Tests parse them all, and run the quick ones."""

from cyclopts import App

from branchwork.language import say

EXAMPLES = {
    "train": (
        "branchwork train residual --data sample --epochs 1",
        "branchwork train lecture.py:Net --learning-rate 0.003 --seed 7",
    ),
    "evaluate": ("branchwork evaluate runs/first", "branchwork evaluate runs/first --json figures.json"),
    "compare": (
        "branchwork compare runs/first runs/second",
        "branchwork compare runs/first runs/second --out compare.html",
    ),
    "predict": ("branchwork predict runs/first 7.jpg", "branchwork predict runs/first pictures --csv answers.csv"),
    "nets": ("branchwork nets", "branchwork nets resnet dense"),
    "inspect": ("branchwork inspect lecture.py:Net --lint", "branchwork inspect inception:without=b5 --draw net.svg"),
    "explain": ("branchwork explain runs/first --images 1000", "branchwork explain runs/first 7.jpg --draw why.png"),
    "select": ("branchwork select runs/first --keep 2", "branchwork select inception --data sample --drop 0.2%"),
    "ui": ("branchwork ui runs/first", "branchwork ui runs --port 8000"),
    "study": ("branchwork study depth", "branchwork study branches --data sample --seeds 3"),
    "export": ("branchwork export runs/first --to onnx", "branchwork export runs/first --to pt2 --out net.pt2"),
    "bench": ("branchwork bench inception", "branchwork bench runs/first --engines torch onnxruntime"),
    "data": ("branchwork data sample", "branchwork data photos --draw examples.png"),
    "data pack": ("branchwork data pack photos", "branchwork data pack photos --size 64 --out photos-64.pack"),
    "demo": ("branchwork demo", "branchwork demo --data sample"),
    "doctor": ("branchwork doctor", "branchwork doctor --json doctor.json"),
}


def add_examples(app: App) -> None:
    """End the help of `app`, and of each verb with its examples, in the user's language."""
    language = say("--lang en or --lang zh chooses the language, else BRANCHWORK_LANG or the system.")
    trust = say("--trust lets a run folder that others made run its own code, now and from now on.")
    app.help_epilogue = f"{language}\n{trust}"
    for verb, lines in EXAMPLES.items():
        command = app
        for word in verb.split():
            command = command[word]
        command.help_epilogue = "\n".join((app.help_epilogue, "", say("Examples:"), *(f"  {line}" for line in lines)))
