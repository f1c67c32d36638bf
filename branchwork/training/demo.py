"""The newcomer's first minute: both of the lecture's nets, trained with the default recipe."""

from pathlib import Path

from branchwork.datasets.load import load_data
from branchwork.observer import Observer
from branchwork.training.distributed import need_alone
from branchwork.training.train import Result, complete, make_plan


def demo(data: str = "auto", *, out: str | Path = "runs/demo", observer: Observer | None = None) -> tuple[Result, ...]:
    """Train `inception` and `residual` on `data` into folders within `out`.

    A net that was trained there before is not trained again, and one that was stopped is continued.
    """
    observer = observer or Observer()
    need_alone("the demo")
    data_set = load_data(data, observer=observer)
    folder = Path(out) / data_set.name
    nets = ("inception", "residual")
    plans = {folder / net: make_plan(net, data_set) for net in nets}
    return complete(plans, data_set, "stopped, and saved. Run the same command again to continue.", observer)
