"""What a learner's script trains with, read from its syntax: nothing of it is run."""

import ast
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchwork.catalogue.statements import parse
from branchwork.language import say

_SCRIPT = re.compile(r".+?\.(py|ipynb)(?=$|[:\[])")
_OPTIMIZERS = (
    "SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "LBFGS", "Rprop",
)  # fmt: skip
# The fields of a recipe that torch sets where a script does not, for the optimisers that recipes have.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": "sgd", "learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.0},
    "Adam": {"optimizer": "adam", "learning_rate": 0.001, "momentum": 0.9, "beta2": 0.999, "weight_decay": 0.0},
}
# Arguments that change the steps, and that no recipe has.
_MISSING = ("nesterov", "dampening", "amsgrad", "maximize")
# What constants are called where no call says what they are for.
_BATCH, _EPOCHS = ("batch_size", "batchsize", "bs"), ("num_epochs", "n_epochs", "epochs", "max_epochs", "num_epoch")
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip


@dataclass(frozen=True)
class Habits:
    """The optimiser that a script names, the fields of a recipe that it sets, and the scheduler that it may have.

    `unread` are arguments of the optimiser whose values the code does not show, or that no recipe has.
    """

    optimizer: str
    fields: dict[str, Any]
    scheduler: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def is_supported(self) -> bool:
        """Whether a recipe has this optimiser."""
        return self.optimizer in _DEFAULTS

    def __str__(self) -> str:
        """Write `SGD 0.01, momentum 0.5, batch 64, 10 epochs`; what the script does not say is left out."""
        found = self.fields
        parts = [self.optimizer + (f" {found['learning_rate']:g}" if "learning_rate" in found else "")]
        if self.optimizer == "SGD" and found.get("momentum"):
            parts.append(say("momentum {momentum:g}", momentum=found["momentum"]))
        if found.get("weight_decay"):
            parts.append(say("weight decay {decay:g}", decay=found["weight_decay"]))
        if "batch_size" in found:
            parts.append(say("batch {size}", size=found["batch_size"]))
        if "epochs" in found:
            count = found["epochs"]
            parts.append(say("one epoch") if count == 1 else say("{count} epochs", count=count))
        return ", ".join(parts)


def read_habits(net: str) -> Habits | None:
    """Return what the script of `net` trains with; None if `net` is in no script, or the script names no optimiser."""
    match = _SCRIPT.match(net)
    path = Path(os.path.abspath(match[0])) if match else None
    if path is None or not path.is_file():
        return None
    nodes = [node for top, _ in parse(path, path.read_bytes()) for node in _in_order(top)]
    calls = [(_name(node.func), node) for node in nodes if isinstance(node, ast.Call)]
    optimizers = [(name, call) for name, call in calls if name in _OPTIMIZERS]
    if not optimizers:
        return None
    known = _Constants(nodes)
    name, call = optimizers[0]
    given = _arguments(name, call)
    numbers = {field: known.number(value) for field, (_, value) in given.items()}
    unread = [argument for field, (argument, _) in given.items() if numbers[field] is None]
    fields: dict[str, Any] = {**_DEFAULTS.get(name, {}), **numbers}
    loaders = [loader for called, loader in calls if called == "DataLoader"]
    shuffled = [loader for loader in loaders if ast.unparse(_value(loader, "shuffle", 2) or loader) == "True"]
    batches = [known.argument(loader, "batch_size", 1) for loader in (shuffled or loaders)[:1]]
    fields["batch_size"] = _whole(batches[0] if batches else known.first(_BATCH))
    fields["epochs"] = _whole(next(filter(None, map(known.epochs, nodes)), None) or known.first(_EPOCHS))
    scheduler = next((called for called, _ in calls if re.fullmatch(r"[A-Z]\w+LR|ReduceLROnPlateau", called)), None)
    unread += [ast.unparse(keyword) for keyword in call.keywords if keyword.arg in _MISSING or keyword.arg is None]
    fields = {key: value for key, value in fields.items() if value is not None}
    return Habits(name, fields, scheduler, tuple(dict.fromkeys(unread)))


def _arguments(name: str, call: ast.Call) -> dict[str, tuple[str, ast.expr]]:
    """Return, by field of a recipe, the argument of an optimiser that sets it, and the value that is given for it."""
    found = {"learning_rate": ("lr", _value(call, "lr", 1))}
    found["weight_decay"] = ("weight_decay", _value(call, "weight_decay"))
    if name == "SGD":
        found["momentum"] = ("momentum", _value(call, "momentum", 2))
    elif name == "Adam":
        betas = _value(call, "betas", 2)
        pair = betas.elts if isinstance(betas, ast.Tuple | ast.List) and len(betas.elts) == 2 else (betas, betas)
        found |= {"momentum": ("betas", pair[0]), "beta2": ("betas", pair[1])}
    return {field: (argument, value) for field, (argument, value) in found.items() if value is not None}


def _in_order(top: ast.AST) -> Iterator[ast.AST]:
    yield top
    for child in ast.iter_child_nodes(top):
        yield from _in_order(child)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _value(call: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    if given is None and position is not None and position < len(call.args):
        return call.args[position]
    return given


def _whole(number: float | None) -> int | None:
    return int(number) if number is not None and number == int(number) and number >= 1 else None


class _Constants:
    """The numbers that a script gives a name: variables, attributes, keys, and defaults of its arguments."""

    def __init__(self, nodes: list[ast.AST]) -> None:
        self._values: dict[str, float] = {}
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._note(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._note(node.target, node.value)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    self._note(key, value)
            elif isinstance(node, ast.Call) and _name(node.func) == "add_argument":
                for flag in node.args:
                    if isinstance(flag, ast.Constant) and (default := _value(node, "default")) is not None:
                        self._note(ast.Constant(str(flag.value).lstrip("-").replace("-", "_")), default)

    def _note(self, target: ast.AST | None, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=False):
                self._note(one, its)
        key = str(target.value) if isinstance(target, ast.Constant) else _name(target or value)
        number = self.number(value)
        if key and number is not None:
            self._values.setdefault(key, number)

    def number(self, node: ast.AST) -> float | None:
        """Return the number that an expression stands for, if that can be seen."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return self._values.get(str(node.slice.value))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self.number(node.left), self.number(node.right)
            try:
                return None if left is None or right is None else float(_OPERATORS[type(node.op)](left, right))
            except (ArithmeticError, TypeError, ValueError):
                return None
        return self._values.get(_name(node))

    def argument(self, call: ast.Call, name: str, position: int | None = None) -> float | None:
        value = _value(call, name, position)
        return None if value is None else self.number(value)

    def first(self, names: tuple[str, ...]) -> float | None:
        return next((value for name in names for key, value in self._values.items() if key.lower() == name), None)

    def epochs(self, node: ast.AST) -> float | None:
        """Return how often a loop over epochs goes round."""
        if not isinstance(node, ast.For) or "epoch" not in ast.unparse(node.target).lower():
            return None
        calls = [call for call in ast.walk(node.iter) if isinstance(call, ast.Call) and _name(call.func) == "range"]
        ends = [self.number(end) for end in calls[0].args[:2]] if calls else [None]
        if not ends or None in ends:
            return None
        return ends[0] if len(ends) == 1 else ends[1] - ends[0]  # type: ignore[operator]
