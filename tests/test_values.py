"""Values of the configuration have the type of their field, or are refused by key."""

import pytest
from fake_data import refusal, retinopathy

from resnet_lab.axes import as_typed
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
    assert refusal(conform, "data.key", value, hint) == f"data.key={as_typed(value)}: must be {words}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        ([1, None, False], "[1, null, false]"),
        ("0.01", '"0.01"'),
        ("1e-3", '"1e-3"'),
        ("null", '"null"'),
        ("True", '"True"'),
        ("big", "big"),
        ("no", "no"),
        ("01", "01"),
        ("", ""),
    ],
)
def test_a_value_is_shown_as_users_type_it(value, shown):
    assert refusal(conform, "data.key", value, float).startswith(f"data.key={shown}: must be a number")


def test_the_second_part_of_a_decimal_comma_gets_a_hint():
    assert refusal(conform, "optim.lr", "001", float).endswith("; a decimal number has a point: optim.lr=0.001")
    assert refusal(conform, "optim.lr", "x01", float).endswith("must be a number")


@pytest.mark.parametrize("value", [{"0:4": None, 63: None}, {"0:4": None, 1: 3}])
def test_a_mapping_without_blanks_after_its_colons_gets_a_hint(value):
    message = refusal(conform, "data.labels", value, dict[str, int] | None)
    assert message.endswith(
        ": must be a mapping {text: a whole number, …} or null; a key has no value: write a blank after each colon, "
        "'data.labels={a: 0, b: 1}'"
    )
    assert "blank" not in refusal(conform, "data.labels", {"0": "x"}, dict[str, int] | None)
    assert "blank" not in refusal(conform, "data.labels", value, int)


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
    message = refusal(lambda: retinopathy(tmp_path, **{key: value}))
    assert message.startswith(f"data.{key}={as_typed(value)}: must be ")


def test_names_that_are_numbers_are_names(tmp_path):
    data = retinopathy(tmp_path, images=2015, train_csv=1, label_column=3, class_names=[0, 1])
    assert (data.images, data.train_csv, data.label_column, data.class_names) == ("2015", "1", "3", ["0", "1"])
