import dataclasses
import tomllib

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from branchwork import best, course, fast, finetune, photos
from branchwork.errors import RecipeError
from branchwork.training.recipe import AUGMENTATIONS, UNCHANGED, read_recipe
from branchwork.training.recipes import RECIPES


def test_course_is_the_lectures():
    recipe = course()
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (10, 64, "sgd")
    assert (recipe.learning_rate, recipe.momentum, recipe.schedule) == (0.01, 0.5, "constant")
    assert (recipe.validation, recipe.weight_decay, recipe.precision) == (0, 0, "fp32")


def test_the_learning_rate_is_torchs_onecycle():
    recipe = fast().but({"learning_rate": 0.3, "warmup": 0.25})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    # torch's phases end at step pct·total − 1 and at step total − 1: here at 100 and at 400.
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=401, pct_start=101 / 401, final_div_factor=1e9)
    for step in range(400):
        expected = scheduler.get_last_lr()[0]
        assert recipe.learning_rate_at(step / 400) == pytest.approx(expected, rel=1e-6, abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_the_learning_rate_has_its_peak_after_the_warm_up():
    recipe = fast().but({"learning_rate": 0.3, "warmup": 0.25})
    assert recipe.learning_rate_at(0) == pytest.approx(0.3 / 25)
    assert recipe.learning_rate_at(0.25) == pytest.approx(0.3)
    assert recipe.learning_rate_at(1) == pytest.approx(0)
    assert fast().but({"warmup": 0.0, "learning_rate": 0.3}).learning_rate_at(0) == pytest.approx(0.3)
    assert course().learning_rate_at(0.9) == 0.01


def test_a_linear_schedule_goes_by_straight_lines():
    recipe = fast().but({"schedule": "linear", "learning_rate": 0.5, "warmup": 0.2})
    rates = [recipe.learning_rate_at(progress / 10) for progress in range(11)]
    assert rates == pytest.approx([0.02, 0.26, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625, 0])


def test_a_schedule_of_steps_is_the_paper_s():
    recipe = course().but({"schedule": "steps", "learning_rate": 0.1})
    assert recipe.warmup == 0 and fast().but({"schedule": "steps"}).warmup == 0
    # He et al. 2015, section 4.2: divided by 10 at 32k and 48k of 64k iterations.
    rates = {32_000: 0.1, 48_000: 0.01, 64_000: 0.001}
    for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999):
        expected = next(rate for end, rate in rates.items() if step < end)
        assert recipe.learning_rate_at(step / 64_000) == pytest.approx(expected), step
    rising = recipe.but({"warmup": 0.1})
    assert [rising.learning_rate_at(p) for p in (0, 0.05, 0.1, 0.6)] == pytest.approx([0.004, 0.052, 0.1, 0.01])


@pytest.mark.parametrize("recipe", [fast(), course()])
def test_only_best_augments_and_averages(recipe):
    assert not any(getattr(recipe, name) for name in (*AUGMENTATIONS, "refine", "ema"))
    assert best().ema and best().shift and best().refine and best().validation == 0


def test_the_last_part_of_a_run_changes_no_image():
    recipe = photos().but({"refine": 0.25, "mixup": 0.2})
    assert recipe.at(0) == recipe.at(0.74) == recipe
    assert recipe.at(0.75) == recipe.at(1) == recipe.but({**UNCHANGED, "refine": 0.0})
    assert fast().at(1) == fast()


def test_the_average_forgets_the_start():
    recipe = best().but({"ema": 0.9})
    assert [recipe.ema_at(step) for step in (0, 8, 80, 81, 10_000)] == [0.1, 0.5, 0.9, 0.9, 0.9]


def test_fewer_images_are_passed_over_more_often():
    assert best("residual", 60_000).epochs < best("residual", 6_000).epochs < 500
    assert fast("inception", 60_000).epochs < fast("inception", 6_000).epochs < 12


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_written_and_read_without_loss(name, tmp_path):
    recipe = RECIPES[name]("residual", 6_000)
    assert tomllib.loads(recipe.to_toml()) == dataclasses.asdict(recipe)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "recipe.toml", fast()) == recipe


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("epochs", 1.5, "must be an integer"),
        ("epochs", True, "must be an integer"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("batch_size", -3, "at least 1"),
        ("batch_size", "large", "must be an integer"),
        ("batch_size", 2.5, "must be an integer"),
        ("optimizer", "adamw", "one of adam, muon, sgd"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "must be a number"),
        ("learning_rate", "fast", "must be a number"),
        ("momentum", 1.0, "at least 0 and below 1"),
        ("beta2", -0.1, "at least 0 and below 1"),
        ("weight_decay", -1.0, "at least 0"),
        ("schedule", "cosine", "one of constant, linear, onecycle, steps"),
        ("warmup", 1.0, "at least 0 and below 1"),
        ("label_smoothing", 1.0, "at least 0 and below 1"),
        ("auxiliary", -0.1, "auxiliary must be at least 0, got -0.1"),
        ("shift", -1.0, "shift must be at least 0, got -1.0"),
        ("pad", -1, "pad must be at least 0, got -1"),
        ("pad", 1.5, "pad must be an integer"),
        ("rotation", 181.0, "from 0 to 180 degrees"),
        ("scaling", 1.0, "at least 0 and below 1"),
        ("elastic", -0.5, "at least 0"),
        ("erasing", 1.5, "from 0 to 1, as a fraction of the images"),
        ("refine", 1.0, "below 1, as a fraction of the run"),
        ("ema", 1.0, "at least 0 and below 1"),
        ("validation", 1.0, "as a fraction of the images"),
        ("precision", "fp16", "one of auto, fp32, bf16, fp64"),
        ("flip", 1.5, "from 0 to 1, as a fraction of the images"),
        ("crop", 1.0, "as a fraction of the area"),
        ("colour", 1.0, "at least 0 and below 1"),
        ("mixup", -1.0, "from 0 to 100"),
        ("accumulate", 0, "accumulate must be at least 1, got 0"),
        ("accumulate", 129, "accumulate must be from 1 to 128 (a part needs two images), got 129"),
        ("clip", -1.0, "at least 0"),
        ("patience", -1, "at least 0"),
        ("minutes", -0.1, "at least 0"),
        ("fraction", 0.0, "above 0 and at most 1"),
        ("fraction", 1.5, "above 0 and at most 1"),
        ("top", -1, "at least 0"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value, words):
    with pytest.raises(RecipeError) as caught:
        fast().but({key: value})
    assert str(caught.value).startswith(key) and words in str(caught.value)


def test_values_that_would_be_ignored_are_refused():
    with pytest.raises(RecipeError, match=r"beta2 must be 0 with sgd, which has no second beta, got 0\.9"):
        course().but({"beta2": 0.9})
    with pytest.raises(RecipeError, match=r"refine must be 0 when no image is augmented, got 0\.1"):
        fast().but({"refine": 0.1})
    with pytest.raises(RecipeError, match=r"warmup must be 0 with a constant schedule, got 0\.1"):
        course().but({"warmup": 0.1})
    for name in ("patience", "top"):
        with pytest.raises(RecipeError, match=rf"{name} must be 0 when no images are held out for validation, got 3"):
            course().but({name: 3})


def test_a_training_is_as_far_as_the_larger_share_of_its_steps_and_its_time():
    timed = fast().but({"minutes": 2.0})
    assert timed.progress(0.25, 0.0) == 0.25 and timed.progress(0.25, 60.0) == 0.5 and timed.progress(0.5, 500.0) == 1
    assert fast().progress(0.25, 1e9) == 0.25
    assert not timed.out_of_time(119.9) and timed.out_of_time(120.0) and not fast().out_of_time(1e9)


def test_patience_counts_epochs_without_a_better_one():
    patient = fast().but({"patience": 2})
    for accuracies, over in (
        ([], False), ([0.5], False), ([0.5, 0.4], False), ([0.5, 0.4, 0.5], True), ([0.5, 0.4, 0.6, 0.6], False),
        ([0.1, 0.2, 0.3, 0.4], False), ([0.4, 0.3, 0.2, 0.1], True),
    ):  # fmt: skip
        assert patient.out_of_patience(accuracies) == over, accuracies
        assert not fast().out_of_patience(accuracies)


def test_fields_that_go_together_follow_each_other():
    sgd = fast().but({"optimizer": "sgd", "schedule": "constant"})
    assert (sgd.beta2, sgd.warmup) == (0, 0)
    adam = course().but({"optimizer": "adam", "schedule": "onecycle", "warmup": 0.1})
    assert (adam.beta2, adam.warmup) == (0.999, 0.1)
    assert fast().but({"schedule": "linear"}).warmup == fast().warmup
    assert course().but({"schedule": "linear"}).warmup == 0.3
    assert fast().but({"optimizer": "adam"}) == fast()
    assert fast().but({"optimizer": "muon"}).beta2 == fast().beta2 == 0.9
    assert course().but({"optimizer": "muon"}).beta2 == 0.999
    whole = finetune().but({"epochs": 20, "head_epochs": 5})
    assert [whole.but({"epochs": epochs}).head_epochs for epochs in (40, 12, 3, 2, 1)] == [10, 3, 1, 1, 0]
    assert whole.but({"learning_rate": 0.1}).head_epochs == 5 and course().but({"epochs": 3}).head_epochs == 0
    with pytest.raises(RecipeError, match="head_epochs must be at least 0 and fewer than all epochs, got 3"):
        whole.but({"epochs": 3, "head_epochs": 3})
    with pytest.raises(RecipeError, match=r"lowest_rate must be 1 with muon, which has one rate, got 0\.01"):
        whole.but({"optimizer": "muon"})


def test_the_head_and_all_of_the_net_each_have_a_schedule():
    recipe = finetune().but({"epochs": 10, "head_epochs": 4, "learning_rate": 0.5, "schedule": "linear", "warmup": 0.5})
    rates = [recipe.learning_rate_at(progress / 20) for progress in range(20)]
    # The first eight rise for four and fall for four; of the other twelve, six and six.
    assert [rates[step] for step in (0, 2, 4, 7)] == pytest.approx([0.02, 0.26, 0.5, 0.125])
    assert [rates[step] for step in (8, 11, 14, 17)] == pytest.approx([0.02, 0.26, 0.5, 0.25])


def test_an_unknown_key_is_told_its_neighbour(tmp_path):
    with pytest.raises(RecipeError, match=r"a recipe has no key 'batchsize'. Did you mean 'batch_size'"):
        fast().but({"batchsize": 3})
    (tmp_path / "r.toml").write_text("learning-rate = 0.1")
    with pytest.raises(RecipeError, match=r"r.toml: .*Did you mean 'learning_rate'"):
        read_recipe(tmp_path / "r.toml", fast())


def test_files_that_are_no_recipe_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.toml", fast())
    (tmp_path / "r.toml").write_text("epochs 3")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        read_recipe(tmp_path / "r.toml", fast())
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        read_recipe(tmp_path / "r.toml", fast())


def test_flags_go_before_a_file_where_only_both_make_a_recipe(tmp_path):
    path = tmp_path / "r.toml"
    for text, flags in (
        ("patience = 3", {"validation": 0.2}),
        ("refine = 0.3", {"shift": 2.0}),
        ("warmup = 0.1", {"schedule": "linear"}),
        ("epochs = 3", {"epochs": 4}),
    ):
        path.write_text(text)
        assert read_recipe(path, course(), flags) == course().but({**tomllib.loads(text), **flags})
    with pytest.raises(RecipeError, match=r"r\.toml and the flags: epochs must be at least 1, got 0"):
        read_recipe(path, course(), {"epochs": 0})
