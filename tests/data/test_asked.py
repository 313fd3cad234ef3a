"""Results are not replaced by those of another question, unless that is asked for."""

import json
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from tests.running import refused, transferkit
from transferkit.data.asked import ASKED, asked_of, check_earlier
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError


def table(seed: int = 0, **metadata: str) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    labels = ["ants", "bees"] * 12
    embedding = torch.randn(24, 3, generator=generator) + torch.tensor([[4.0, 0, 0], [0, 4, 0]] * 12)
    return Embeddings(embedding, [f"{row:02d}.jpg" for row in range(24)], labels, [None] * 24, metadata)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"extractor": "resnet50"}, "extractor (resnet18, now resnet50)"),
        ({"space": "b" * 64}, "weights, preprocessing or pooling;"),
        ({"data_fingerprint": "c" * 64}, "images;"),
    ],
)
def test_what_differs_is_named(other: dict[str, str], says: str, tmp_path: Path) -> None:
    facts = {"extractor": "resnet18", "space": "a" * 64, "data_fingerprint": "a" * 64}
    file = tmp_path / "probe.json"
    asked = asked_of(facts, table(), {"seed": 0, "folds": None})
    check_earlier(file, asked, overwrite=False)
    file.write_text(json.dumps({ASKED: asked}))
    check_earlier(file, asked, overwrite=False)
    now = asked_of(facts | other, table(), {"seed": 0, "folds": None})
    with pytest.raises(UserError) as error:
        check_earlier(file, now, overwrite=False)
    assert f"{file} holds results that differ in " in str(error.value) and says in str(error.value)
    assert str(error.value).endswith("choose another `out` or add `overwrite=True`")
    check_earlier(file, now, overwrite=True)
    with pytest.raises(UserError, match=r"differ in seed \(0, now 1\);"):
        check_earlier(file, asked_of(facts, table(), {"seed": 1, "folds": None}), overwrite=False)


@pytest.mark.parametrize("text", ["{}", '{"linear": {"top1": 1}}', "{"])
def test_results_of_an_earlier_version_are_not_replaced_either(text: str, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    file.write_text(text)
    with pytest.raises(UserError, match="results that do not record what they answer"):
        check_earlier(file, asked_of({}, table(), {}), overwrite=False)


def test_a_table_without_metadata_is_known_by_its_numbers() -> None:
    assert asked_of({}, table(0), {}) == asked_of({}, table(0), {}) != asked_of({}, table(1), {})


def test_a_probe_is_not_lost_to_one_of_another_table(tmp_path: Path) -> None:
    """Both are written to the default place; folds count as another question, too."""
    with chdir(tmp_path):
        for seed, name in enumerate(("a", "b")):
            table(seed, extractor=name).save(f"{name}.parquet")
        fast = ("--fast", "--json")
        first = transferkit("probe", "a.parquet", *fast)
        assert first.status == 0, first.err
        before = Path("probe/probe.json").read_bytes()
        again = transferkit("probe", "a.parquet", *fast)
        assert again.status == 0 and Path("probe/probe.json").read_bytes() == before
        for arguments, says in (
            (["b.parquet"], r"extractor \(a, now b\), images"),
            (["a.parquet", "--seed", "1"], r"seed \(0, now 1\)"),
            (["a.parquet", "--folds", "2"], r"folds \(None, now 2\)"),
        ):
            done = transferkit("probe", *arguments, *fast)
            assert refused(done, f"probe/probe.json holds results that differ in {says}; choose another --out")
            assert done.err.rstrip().endswith("or add --overwrite")
            assert Path("probe/probe.json").read_bytes() == before
        done = transferkit("probe", "b.parquet", *fast, "--overwrite")
        assert done.status == 0 and Path("probe/probe.json").read_bytes() != before
