"""The sentences of the page, in English; Chinese comes from the catalogue."""

from branchwork.language import mark

WORDS = {
    "draw": mark("Draw"),
    "clear": mark("Clear"),
    "picture": mark("A picture…"),
    "received": mark("what the net gets"),
    "examples": mark("Or take a test image. A red frame: the net is wrong."),
    "empty": mark("Draw something, or take an example."),
    "unreadable": mark("This picture cannot be read: take a PNG or JPEG."),
    "answer": mark("{name}, {share}"),
    "about": mark("{accuracy} of {images} test images right ({low}–{high}), {parameters} parameters, {macs} MACs"),
    "checked": mark("Runs in your browser, without any network; it agrees with PyTorch to {deviation}."),
    "disagrees": mark("This browser does not compute what PyTorch computes ({deviation}): do not trust what you see."),
    "click": mark("Click a layer to see every channel, its kernel, and the arithmetic of every pixel."),
    "channel": mark("channel {number}"),
    "hover": mark("Move over the map, or use the arrow keys: every number is worked out here."),
    "pixel": mark("row {row}, column {column}: {value}"),
    "window": mark("window of input channel {channel}"),
    "kernel": mark("kernel"),
    "inputs": mark("the sums over the {count} input channels, the largest first:"),
    "bias": mark("bias"),
    "padded": mark("Dashed numbers lie outside the map: the padding, which is 0."),
    "average": mark("their sum, divided by {count}, is {value}"),
    "largest": mark("the largest is {value}"),
    "counted": mark("Dashed zeros are padding, and the average counts them."),
    "uncounted": mark("Dashed places are padding, which the average leaves out."),
    "copied": mark("This channel is one of the {channels} of branch {branch}: a concatenation copies."),
    "linear": mark("Each number is a sum of {count} products, and a bias."),
    "flattened": mark("{shape} in one row: {count} numbers."),
    "switch": mark("Switch a branch off, or turn it down. In its place comes"),
    "zero": mark("zero"),
    "mean": mark("its mean over many images"),
    "strength": mark("strength of {name}"),
    "lost": mark("without it the net loses {points} points of accuracy ({low} to {high})"),
    "ledger": mark("What you tried"),
    "why": mark("What speaks for the answer?"),
    "ask-worth": mark("Which branch?"),
    "ask-heat": mark("Which pixels?"),
    "worth": mark("How much the logit of “{name}” falls without each branch, for this picture:"),
    "heat-words": mark(
        "Hide a patch of {size}×{size} pixels: the colour is strongest where “{name}” loses most, up to {most}."
    ),
    "tour": mark("A tour in six questions"),
    "next": mark("Next"),
    "back": mark("Back"),
    "explore": mark("Explore freely"),
    "close": mark("Close"),
    "save": mark("Save as PNG"),
    "tour-size": mark("Why do all branches keep height and width?"),
    "tour-size-words": mark(
        "Because the join stacks their maps like sheets of paper: {channels} channels of {side}×{side}. A 5×5 kernel "
        "without padding would return smaller sheets. Move over a map of the 5×5 branch near the border: the dashed "
        "zeros are the padding that keeps the size."
    ),
    "tour-flat": mark("Where does {count} come from?"),
    "tour-flat-words": mark(
        "{shape} = {count}: all maps of the last block in one row. It follows from the size of the image."
    ),
    "tour-one": mark("What does a 1×1 convolution do?"),
    "tour-one-words": mark(
        "It looks at one pixel of all channels at once and mixes them. Move over its map: the window is a single "
        "number per input channel."
    ),
    "tour-branch": mark("Which branch matters for this digit?"),
    "tour-branch-words": mark("Switch each branch off and watch the bars on the left. Then ask: which branch?"),
    "tour-shortcut": mark("What does the shortcut carry?"),
    "tour-shortcut-words": mark(
        "The block adds its input to what its two convolutions make of it. Turn the shortcut down from 1 to 0, and "
        "then the other branch: which of the two can the net do without?"
    ),
    "tour-affine": mark("Are eight convolutions really one?"),
    "tour-affine-words": mark(
        "After this join comes no activation, so all its convolutions and the last layer are one. Turn a branch to "
        "0.5: the logits move exactly half as far as at 0."
    ),
}  # fmt: skip
