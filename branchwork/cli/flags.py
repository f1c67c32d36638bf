"""What a flag that a verb does not have probably meant."""

import inspect

from cyclopts.exceptions import UnknownOptionError

from branchwork.language import say
from branchwork.synonyms import meant

# Flags of other tools that say in one word what is a flag and its value here.
_VALUES = {"cuda": "cuda", "gpu": "cuda", "cpu": "cpu", "mps": "mps", "bf16": "bf16", "fp32": "fp32"}


def unknown_flag(reason: UnknownOptionError) -> str:
    """Return the message about an unknown flag: `--lr: did you mean --learning-rate?`"""
    flag = (reason.token.keyword or reason.token.value).partition("=")[0]
    verb = " ".join(("branchwork", *(reason.command_chain or ())))
    word = flag.lstrip("-").replace("-", "_")
    flags = [name for argument in reason.argument_collection for name in argument.names if name.startswith("--")]
    flags += ["--lang", "--trust"]  # which every verb has
    positional = [
        parameter.name
        for parameter in inspect.signature(reason.target or (lambda: None)).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    ]
    known = {name.removeprefix("--").replace("-", "_"): name for name in flags} | {n: n.upper() for n in positional}
    name = meant(word, known)
    if name in positional:
        written = " ".join((verb, *map(str.upper, positional)))
        return say("{flag}: {name} is written without a flag: {written}", flag=flag, name=known[name], written=written)
    if name:
        value = f" {_VALUES[word]}" if word in _VALUES else ""
        return say("{flag}: did you mean {meant}?", flag=flag, meant=known[name] + value)
    return say("{verb} has no flag {flag}: see {verb} --help", verb=verb, flag=flag)
