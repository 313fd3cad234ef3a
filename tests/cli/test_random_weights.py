"""The extractor that a command opens."""

import torch
from torchvision import models

from transferkit.cli.open_extractor import read_extractor


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    opened = read_extractor("shufflenet_v2_x0_5", "none").backbone.model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    oracle = models.shufflenet_v2_x0_5().state_dict()
    for name, value in opened.items():
        assert torch.equal(value, oracle[name]), name


def test_a_seed_gives_other_random_weights() -> None:
    opened = read_extractor("shufflenet_v2_x0_5", "none", seed=7).backbone.model.state_dict()
    torch.manual_seed(7)
    oracle = models.shufflenet_v2_x0_5().state_dict()
    assert all(torch.equal(value, oracle[name]) for name, value in opened.items())
