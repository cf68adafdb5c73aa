"""The small CNN: shapes, gradients everywhere, and clear errors."""

import pytest
import torch
from fake_data import refusal

from resnet_lab.models.example_cnn import example_cnn

SETTINGS = {"widths": [8, 12], "hidden": 16, "dropout": 0.5, "activation": "ReLU"}


@pytest.mark.parametrize("side", [4, 33])
def test_any_image_size_gives_logits_and_every_parameter_a_gradient(side):
    model = example_cnn(num_classes=7, **SETTINGS)
    logits = model(torch.rand(3, 3, side, side))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parameters_are_counted_by_hand():
    convolutions = (3 * 9 + 1) * 8 + (8 * 9 + 1) * 12
    assert sum(p.numel() for p in example_cnn(5, **SETTINGS).parameters()) == convolutions + 13 * 16 + 17 * 5


def test_weights_of_another_run_are_loaded(tmp_path):
    torch.manual_seed(0)
    model = example_cnn(5, **SETTINGS)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = example_cnn(5, **SETTINGS, pretrained=str(tmp_path / "weights.pt"))
    for ours, theirs in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wrong", [{"widths": []}, {"widths": [0]}, {"hidden": 0}, {"dropout": 1.0}])
def test_invalid_numbers_are_refused(wrong):
    assert "give numbers from 1" in refusal(lambda: example_cnn(5, **(SETTINGS | wrong)))
