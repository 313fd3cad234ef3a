"""The protocol of a probe, as the documentation has it, is that of the code."""

import inspect
import re
from pathlib import Path

from transferkit.probe.fewshot import SEEDS, SHOTS
from transferkit.probe.knn import K_NEIGHBORS
from transferkit.probe.linear import C_GRID, fit_linear
from transferkit.probe.protocol import probe_embeddings
from transferkit.probe.standardize import KINDS
from transferkit.similarity.retrieval import TEMPERATURE

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


def listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def test_its_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split("### Protocol")[1].split("\n## ")[0].split())
    defaults = {name: each.default for name, each in inspect.signature(probe_embeddings).parameters.items()}
    for words in (
        f"among {listed(K_NEIGHBORS)},",
        f"{listed(SHOTS)} images per class",
        f"over {len(SEEDS)} draws",
        f"exp(cosine / {TEMPERATURE})",
        f"{len(C_GRID)} values from {C_GRID[0]:g} to 1e5",
        f"`{defaults['few_shot_standardization']}` and C = {defaults['few_shot_c']:g}",
        f"{100 * defaults['val_fraction']:g} % of train",
        f"{100 * defaults['test_fraction']:g} % for the test",
        f"above {inspect.signature(fit_linear).parameters['tolerance'].default:g}",
    ):
        assert words.replace("1e-05", "1e-5").replace("1e-06", "1e-6") in text, words
    assert C_GRID[-1] == 1e5 and KINDS == ("none", "l2", "zscore")
    assert re.search(r"none.*`l2`.*`zscore`", text)
