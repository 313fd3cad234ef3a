"""The module of a distillation: its loss is the sum of its parts, and everything that shall learn does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import VIT
from transferkit.extractor import Extractor
from transferkit.training.distill_losses import direction_loss, on_grid, relation_loss
from transferkit.training.distill_module import DistillModule
from transferkit.training.shared_views import as_map

CELLS = (2, 2)


@pytest.fixture
def student() -> Extractor:
    return Extractor.from_pretrained(VIT["backbone"], "none", None, {"image_size": 32}, VIT["architecture"])


def batch_of(teacher: Extractor, pixels: Tensor) -> dict[str, Tensor]:
    """What a loader gives of images, with this teacher."""
    inputs = teacher.preprocessing.normalize(pixels)
    with torch.no_grad():
        features, embedding = teacher.backbone.forward_both(inputs)
    return {"pixels": pixels, "teacher": embedding, "patches": on_grid(as_map(features, inputs), CELLS)}


def module_of(student: Extractor, batch: dict[str, Tensor], **options: Any) -> DistillModule:
    """A module that is related to the images of a batch."""
    given = {"lr": 1e-3, "weight_decay": 0.0, "seed": 0, "origin": {}, "cells": CELLS, **options}
    return DistillModule(student, batch["teacher"], batch["patches"].mean((0, 1)), **given)


def test_a_student_equal_to_its_teacher_has_no_loss(student: Extractor) -> None:
    batch = batch_of(student, torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8))
    module = module_of(student, batch)
    with torch.no_grad():
        for name, center in (("embedding", module.center), ("patches", module.patch_center)):
            layer: Any = module.projections[name]
            layer.weight.copy_(torch.eye(32))
            layer.bias.copy_(-center)
    for name, losses in module.losses(batch).items():
        torch.testing.assert_close(losses, torch.zeros(6), atol=1e-5, rtol=0, msg=name)


def test_the_loss_is_the_sum_of_its_parts(student: Extractor) -> None:
    batch = batch_of(student, torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8))
    module = module_of(student, batch)
    embedding = module.projections["embedding"](batch["teacher"])  # the student is the teacher, before the projection
    patches = module.projections["patches"](batch["patches"])
    center = batch["teacher"].mean(0)
    expected = (
        direction_loss(embedding, batch["teacher"] - center)
        + relation_loss(embedding, batch["teacher"] - center, batch["teacher"] - center)
        + direction_loss(patches, batch["patches"] - batch["patches"].mean((0, 1)))
    )
    torch.testing.assert_close(module.training_step(batch, 0), expected.mean(), atol=1e-5, rtol=1e-5)


def test_every_parameter_learns_and_the_targets_do_not(student: Extractor) -> None:
    batch = batch_of(student, torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8))
    module = module_of(student, batch)
    module.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
    still = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert still <= {"backbone.model.embeddings.mask_token"}
    assert not any(name.startswith(("center", "others", "patch_center")) for name in module.state_dict())


def test_the_projection_depends_on_the_seed_alone(student: Extractor) -> None:
    batch = batch_of(student, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    torch.rand(3)
    one, two, three = (module_of(student, batch, seed=seed).projections["embedding"].weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_without_a_grid_patches_are_not_compared(student: Extractor) -> None:
    batch = batch_of(student, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    module = DistillModule(student, batch["teacher"], None, (0, 0), 1e-3, 0.0, 0, {})
    assert set(module.losses(batch)) == {"direction", "relation"} and set(module.projections) == {"embedding"}
