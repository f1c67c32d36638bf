"""The palette against what is known of light and of colour-blind eyes; nothing here shares code with it."""

from itertools import combinations

import pytest

from branchwork.palette import DARK, IN_ORDER, LIGHT, RESIDUAL, SHORTCUT, branch_colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLIND = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}
JOINS = (("b1", "b5", "b3", "pool"), ("residual", "shortcut"), ("b1", "b5", "b3", "pool", "shortcut"))


def linear(colour):
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour):
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def lab(colour, matrix):
    seen = [min(1, max(0, sum(m * part for m, part in zip(row, linear(colour), strict=True)))) for row in matrix]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(m * part for m, part in zip(row, seen, strict=True)) / w for row, w in zip(to_xyz, white, strict=True)]
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("colour", sorted({*IN_ORDER, SHORTCUT, RESIDUAL}))
@pytest.mark.parametrize("paper", [LIGHT.paper, LIGHT.card, DARK.paper, DARK.card])
def test_every_branch_stands_out_on_light_and_on_dark_paper(colour, paper):
    assert contrast(colour, paper) >= 3  # WCAG 2.2, 1.4.11: graphical objects


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_is_legible_on_its_paper(theme):
    for text in (theme.ink, theme.quiet):
        assert min(contrast(text, theme.paper), contrast(text, theme.card)) >= 4.5


@pytest.mark.parametrize("eyes", BLIND)
@pytest.mark.parametrize("join", JOINS)
def test_the_branches_of_a_join_are_told_apart(eyes, join):
    places = {name: lab(colour, BLIND[eyes]) for name, colour in zip(join, branch_colours(join), strict=True)}
    for one, other in combinations(join, 2):
        away = sum((a - b) ** 2 for a, b in zip(places[one], places[other], strict=True)) ** 0.5
        assert away > 14, (one, other, away)


def test_a_branch_has_the_colour_of_its_name_whoever_wrote_the_net():
    ours, lecture = ("b1", "b5", "b3", "pool"), ("branch1x1", "branch5x5", "branch3x3", "branch_pool")
    assert branch_colours(ours) == branch_colours(lecture)
    assert branch_colours(ours[::-1]) == branch_colours(ours)[::-1]
    assert (
        branch_colours(("shortcut", "residual")) == branch_colours(("downsample", "residual")) == (SHORTCUT, RESIDUAL)
    )


@pytest.mark.parametrize(
    "names",
    [
        ("branch1", "branch2", "branch3", "branch4"),
        ("branch3x3", "branch3x3dbl", "branch_pool"),
        ("a", "b5", "b", "c"),
        ("b3", "b13", "x"),
        (),
    ],
)
def test_no_two_branches_of_a_join_share_a_colour(names):
    colours = branch_colours(names)
    assert len(set(colours)) == len(colours) == len(names)


def test_a_join_of_many_branches_begins_again():
    names = [f"layer{number}" for number in range(20)]
    assert branch_colours(names)[: len(IN_ORDER)] == IN_ORDER and len(branch_colours(names)) == 20
