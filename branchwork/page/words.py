"""The sentences of the page, in English; Chinese comes from the catalogue."""

from branchwork.language import mark

WORDS = {
    "draw": mark("Draw"),
    "clear": mark("Clear"),
    "picture": mark("A picture…"),
    "received": mark("what the net gets"),
    "examples": mark("Or take a test image. A red frame: the net is wrong."),
    "empty": mark("Draw something, or take an example."),
    "blank": mark("No figure was found in this picture: use one with a figure on a plain background."),
    "unreadable": mark("This picture cannot be read: take a PNG or JPEG."),
    "answer": mark("{name}, {share}"),
    "differ": mark("The two nets differ."),
    "about": mark("{accuracy} of {images} test images right ({low}–{high}), {parameters} parameters, {macs} MACs"),
    "checked": mark("Runs in your browser, without an internet connection; agrees with PyTorch to within {deviation}."),
    "half": mark("Its weights are rounded to half precision, to keep the file small."),
    "disagrees": mark("This browser does not compute what PyTorch computes ({deviation}): do not trust what you see."),
    "click": mark("Click a layer to see every channel, its kernel, and the arithmetic of every pixel."),
    "channels": mark("Channels: the arrow keys choose one."),
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
    "linear": mark("Each number is a sum of {count} products, and a bias. Choose one."),
    "number": mark("{name}: {value}"),
    "products": mark("the {shown} largest of {count} products, input × weight:"),
    "place": mark("channel {channel}, row {row}, column {column}"),
    "counterpart": mark("the same layer in {name}"),
    "dashed": mark("dashed: layers that the other net does not have"),
    "alone": mark("{name} has no layer of this name and shape."),
    "flattened": mark("{shape} in one row: {count} numbers."),
    "switch": mark("Switch a branch off, or turn it down. In its place comes"),
    "zero": mark("zero"),
    "mean": mark("its mean over many images"),
    "strength": mark("strength of {name}"),
    "lost": mark("without it the net loses {points} points of accuracy ({low} to {high})"),
    "ledger": mark("What you tried"),
    "why": mark("What supports the answer?"),
    "ask-worth": mark("Which branch?"),
    "ask-heat": mark("Which pixels?"),
    "worth": mark("How much the logit of “{name}” falls if this branch alone is given a black picture:"),
    "exact": mark(
        "Exact: no activation follows, so the branches add up to {total}, all that this picture adds to the logit of a "
        "black one ({black} → {whole})."
    ),
    "overlap": mark(
        "Together {total}; the picture moves the logit from {black} to {whole}. The two need not agree: an activation "
        "follows, so the effects of the branches overlap."
    ),
    "heat-words": mark(
        "Hide a patch of {size}×{size} pixels: the colour is strongest where “{name}” loses most, up to {most}."
    ),
    "tour": mark("A tour in {count} questions"),
    "next": mark("Next"),
    "back": mark("Back"),
    "explore": mark("Explore freely"),
    "close": mark("Close"),
    "save-png": mark("Save as PNG"),
    "save-svg": mark("Save as SVG"),
    "tour-stack": mark("Why do all branches keep height and width?"),
    "tour-stack-words": mark(
        "Because the join stacks their maps like sheets of paper: {channels} channels of {side}×{side}. A {kernel}×"
        "{kernel} kernel without padding would return smaller sheets. Below, the first pixel of such a map is worked "
        "out: the dashed zeros are the padding that keeps the size."
    ),
    "tour-add": mark("Why must the two sides of a sum have the same shape?"),
    "tour-add-words": mark(
        "Because each pixel of each channel is added to the one in the same place: both sides are {shape}. Below, one "
        "pixel is worked out; move over the map for the others."
    ),
    "tour-flat": mark("Where does {count} come from?"),
    "tour-flat-words": mark(
        "{shape} = {count}: all maps of the last block in one row. It follows from the size of the image."
    ),
    "tour-one": mark("What does a 1×1 convolution do?"),
    "tour-one-words": mark(
        "It looks at one pixel of all {inputs} channels at once and mixes them into a new one. Below, the window is a "
        "single number per input channel: choose a channel to see its weight."
    ),
    "tour-field": mark("How much of the picture does one number depend on?"),
    "tour-field-words": mark(
        "The blue frame on the left, over what the net gets, is the receptive field of the pixel that is worked out "
        "below. Choose an earlier layer, and it shrinks."
    ),
    "tour-branch": mark("Which branch matters for this digit?"),
    "tour-branch-words": mark(
        "Below, under “What supports the answer?”, each branch is given a black picture in turn. Switch branches off "
        "yourself, and draw another digit: does the same branch matter?"
    ),
    "tour-shortcut": mark("What does the shortcut carry?"),
    "tour-shortcut-words": mark(
        "It carries the input of the block past its convolutions: see the small maps on its line. It is switched off "
        "now, and Δ shows how far each later layer has moved. Turn it back on with the slider, and the other branch "
        "off: which of the two can the net do without?"
    ),
    "tour-collapse": mark("Are all these convolutions really one?"),
    "tour-collapse-words": mark(
        "Yes. No activation stands between this layer and the answer, so {convolutions} convolutions and all else "
        "that follows are one table: {inputs} numbers for each class. The page has just worked it out, by setting one "
        "input after another to 1. Here are the logits of your picture, both ways:"
    ),
    "multiplies": mark("{count} multiplies"),
    "as-written": mark("as written"),
    "as-table": mark("as one table"),
    "same": mark("The same logits: they differ by {most} at most, the rounding of their numbers."),
}  # fmt: skip
