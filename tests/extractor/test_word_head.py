"""A head made of words: the mean of the templates by its definition; names and templates that no sentence can hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones.words import save_dual
from transferkit import Extractor
from transferkit.errors import UserError
from transferkit.extractor.word_head import TEMPLATES, probabilities, word_head


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    folder: Path = tmp_path_factory.mktemp("dual")
    save_dual("siglip", folder)
    return Extractor.from_pretrained(folder, pooling="projection")


def test_templates_are_averaged_at_unit_length(extractor: Extractor) -> None:
    head = word_head(extractor, ["tiger_beetle", "ant"])
    for row, name in enumerate(("tiger beetle", "ant")):
        texts = [template.replace("{}", name) for template in TEMPLATES]
        mean = extractor.embed_text(texts).double().numpy().mean(0)
        oracle = np.exp(2.0) * mean / np.linalg.norm(mean)
        np.testing.assert_allclose(head.weight[row].detach(), oracle, atol=1e-5)
    assert head.bias.tolist() == [-3.0, -3.0]


def test_a_sigmoid_judges_each_class_alone() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, -1.0]])
    expected = 1 / (1 + np.exp(-logits.numpy()))
    np.testing.assert_allclose(probabilities(logits, sigmoid=True), expected, rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits, sigmoid=False).sum(1), [1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], TEMPLATES, "there are no classes"),
        (["ant", ""], TEMPLATES, "class 2 of 2 in `classes` has an empty name"),
        (["_", "bee"], TEMPLATES, "class 1 of 2 in `classes` has an empty name"),
        (["ant", "bee", "ant"], TEMPLATES, "`classes` has 'ant' twice"),
        (["ant"], (), "`templates` is empty"),
        (["ant"], ("a photo",), r"the template 'a photo' has no \{\}"),
    ],
)
def test_what_no_sentence_can_hold(
    names: list[str], templates: tuple[str, ...], message: str, extractor: Extractor
) -> None:
    with pytest.raises(UserError, match=message):
        word_head(extractor, names, templates)


def test_braces_and_signs_in_a_name_are_text(extractor: Extractor) -> None:
    head = word_head(extractor, ["{ant}", "100 % bee"], ("{}",))
    torch.testing.assert_close(
        torch.nn.functional.normalize(head.weight.detach()), extractor.embed_text(["{ant}", "100 % bee"])
    )
