"""Training from Python as a learner types it: a recipe's name, and its fields and the options as keywords."""

import dataclasses
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest

import branchwork as bw
from branchwork.errors import RecipeError
from branchwork.observer import Observer
from branchwork.training.choice import choose
from branchwork.training.keywords import Keywords, divide
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import RECIPES


def test_the_keywords_are_the_fields_of_a_recipe_and_of_the_options():
    assert get_type_hints(Keywords) == get_type_hints(Recipe) | get_type_hints(Options)
    assert not get_type_hints(Recipe).keys() & get_type_hints(Options).keys()


def test_a_training_takes_keywords_as_the_command_takes_flags(small):
    result = bw.train(
        "residual",
        data=small,
        recipe="course",
        epochs=1,
        batch_size=300,
        learning_rate=0.02,
        seed=7,
        threads=1,
        out="r",
    )
    recipe = tomllib.loads(Path("r/recipe.toml").read_text())
    assert recipe == dataclasses.asdict(bw.course().but({"epochs": 1, "batch_size": 300, "learning_rate": 0.02}))
    assert (result.seed, result.threads, result.epochs) == (7, 1, 1)
    several = bw.train_seeds("residual", seeds=2, data=small, epochs=1, seed=3, threads=1, batch_size=300, out="seeds")
    assert several.seeds == (3, 4) and several.results[0].epochs == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_name_stands_for_it_with_this_net_and_these_images(small, name):
    def recipe(chosen, changes):
        return choose("resnet20", chosen, small, changes=changes, observer=Observer())[1]

    assert recipe(name, {}) == RECIPES[name]("resnet20", 1500)
    assert recipe(bw.best(), {"epochs": 3}) == bw.best().but({"epochs": 3})
    assert recipe(None, {}) == bw.fast("resnet20", 1500)


def test_keywords_go_before_the_options_they_come_with():
    assert divide({"seed": 2, "epochs": 3}, Options(seed=1, threads=1)) == ({"epochs": 3}, Options(seed=2, threads=1))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"lr": 0.1}, "train has no keyword lr. Did you mean learning_rate?"),
        ({"bs": 64}, "Did you mean batch_size?"),
        ({"epoch": 64}, "Did you mean epochs?"),
        ({"optimiser": "sgd"}, "Did you mean optimizer?"),
        ({"gpu": True}, "Did you mean device?"),
        ({"learning_rte": 0.1}, "Did you mean learning_rate?"),
        ({"zzz": 1}, "train has no keyword zzz. Known: accumulate, "),
        ({"recipe": "fats"}, "there is no recipe called 'fats'. Did you mean 'fast'? Known: best, course"),
        ({"epochs": "two"}, "epochs must be an integer, got 'two'"),
    ],
)
def test_a_wrong_keyword_is_told_what_was_meant_before_anything_is_written(small, keywords, words):
    with pytest.raises(RecipeError) as caught:
        bw.train("residual", data=small, **keywords)
    assert words in str(caught.value) and not Path("runs").exists()
