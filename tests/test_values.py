"""Values of the configuration have the type of their field, or are refused by key."""

import pytest
from fake_data import refusal, retinopathy

from resnet_lab.values import conform


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (2015, str, "2015"),
        (1, float, 1),
        (None, str | list[float] | None, None),
        ([1, 2.5], str | list[float] | None, [1, 2.5]),
        (2, int | str, 2),
        ("auto", int | str, "auto"),
        ([0, 1], list[str], ["0", "1"]),
        ({"train": "test"}, dict[str, str] | None, {"train": "test"}),
        (False, bool | str, False),
    ],
)
def test_valid_values_pass(value, hint, result):
    assert conform("data.key", value, hint) == result
    assert type(conform("data.key", value, hint)) is type(result)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (None, str, "text"),
        (True, int, "a whole number"),
        (1.5, int | None, "a whole number or null"),
        (float("inf"), float, "a number"),
        ("yes", bool, "true or false"),
        (0, bool, "true or false"),
        (3, list[int] | None, "a list [a whole number, …] or null"),
        ([1, "b"], list[float], "a list [a number, …]"),
        ("foo", dict[str, str] | None, "a mapping {text: text, …} or null"),
    ],
)
def test_invalid_values_are_named(value, hint, words):
    assert refusal(conform, "data.key", value, hint) == f"data.key={value}: must be {words}"


def test_the_second_part_of_a_decimal_comma_gets_a_hint():
    assert refusal(conform, "optim.lr", "001", float).endswith("; a decimal number has a point: optim.lr=0.001")
    assert refusal(conform, "optim.lr", "x01", float).endswith("must be a number")


def test_a_list_for_one_value_shows_how_to_sweep():
    message = refusal(conform, "model.depth", [18, 34], int)
    assert message.endswith(
        "must be a whole number; a sweep needs -m and values without brackets: -m model.depth=18,34"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augment_classes", True),
        ("augment_classes", ["mild"]),
        ("splits", "foo"),
        ("splits", ["train"]),
        ("scale", 1.1),
        ("scale", None),
        ("scale", ["a", "b"]),
        ("mean", ["a", "b", "c"]),
        ("std", [1, 1, None]),
        ("eye_crop", "foo"),
        ("eye_crop", None),
        ("local_mean", 2),
    ],
)
def test_settings_of_a_data_set_of_another_type_are_refused_by_key(tmp_path, key, value):
    assert refusal(lambda: retinopathy(tmp_path, **{key: value})).startswith(f"data.{key}={value}: must be ")


def test_names_that_are_numbers_are_names(tmp_path):
    data = retinopathy(tmp_path, images=2015, train_csv=1, label_column=3, class_names=[0, 1])
    assert (data.images, data.train_csv, data.label_column, data.class_names) == ("2015", "1", "3", ["0", "1"])
