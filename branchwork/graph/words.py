"""Operations in a few letters, as tables and drawings write them: conv 3×3 /2 p1."""

from branchwork.language import say

_WORDS = {"conv2d": "conv", "max_pool2d": "max", "avg_pool2d": "avg", "scaled_dot_product_attention": "attention"}
_WORDS |= {"adaptive_avg_pool2d": "adaptive avg", "adaptive_max_pool2d": "adaptive max"}
# The letters for what follows the kernel in the detail of an operation.
_LETTERS = {"stride": "/", "pad": "p", "dilation": "d", "groups": "g"}
# More addends than this are counted instead.
_MOST_ADDENDS = 5


def brief(op: str, detail: str, *, padding: bool = True) -> str:
    """Return `conv 3×3 /2 p1`: kernel, stride unless 1, padding unless 0, dilation d and groups g.

    A view or flattening is its product, `88×4×4 = 1408`; a concatenation its sum, `16+24+24+24 = 88`.
    """
    word = _WORDS.get(op) or op.removesuffix("2d").replace("_", " ")
    if op == "add" or not detail:
        return word
    if "=" in detail:
        left, _, right = detail.partition(" = ")
        addends = left.split(" + ")
        if len(addends) == 1:
            return detail
        total = "+".join(addends) if len(addends) <= _MOST_ADDENDS else say("{n} branches", n=len(addends))
        return f"{total} = {right}"
    kernel, *others = detail.split(", ")
    values = dict(other.split(" ", 1) for other in others)
    if op.endswith("pool2d") and "stride" not in values:  # those of a pooling are its kernel's, unless it says so
        values = {"stride": "×".join(dict.fromkeys(kernel.split("×")))} | values
    if not padding:
        values = {name: value for name, value in values.items() if name == "stride"}
    if values.get("stride") == "1":
        del values["stride"]
    return " ".join([word, kernel, *(_LETTERS[name] * value[0].isdigit() + value for name, value in values.items())])
