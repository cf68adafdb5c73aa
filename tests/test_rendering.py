"""Helpers that the templates share."""

from resnet_lab.rendering import breakable


def test_keys_values_and_paths_break_where_their_parts_end():
    assert breakable("pretrained=runs/cifar10_source seed=0, 1") == (
        "pretrained=runs/<wbr>cifar10_<wbr>source seed=0, 1"
    )
    assert breakable("a_<b>") == "a_<wbr>&lt;b&gt;"
    assert breakable("x=") == "x="
