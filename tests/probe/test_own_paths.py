"""Several rows of one image, as of regions: each is a row of its own, and all of them are on one side of a split."""

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.running import transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.probe import ProbeResult, probe_targets
from transferkit.probe.audit import audit_embeddings
from transferkit.probe.fold_tables import fold_tables
from transferkit.probe.own_paths import with_own_paths
from transferkit.probe.rank import Known, measure_candidate

LABELS: dict[Kind, list[str]] = {"class": ["a", "b"], "labels": ["a", "a|b", "b"], "number": ["0.5", "1.5", "2.5"]}
OPTIONS = {"coarse_to_fine": True, "seed": 0, "val_fraction": 0.2, "test_fraction": 0.3}


def regions(kind: Kind = "class", images: int = 24, each: int = 3) -> Embeddings:
    """Three regions per image, of any label."""
    noise = torch.Generator().manual_seed(0)
    names = LABELS[kind]
    number = torch.randint(len(names), (images * each,), generator=noise)
    embedding = torch.randn(images * each, 5, generator=noise) + number[:, None]
    paths = [f"{row // each:02d}.jpg" for row in range(images * each)]
    labels = [names[n] for n in number.tolist()]
    return Embeddings(embedding, paths, labels, [None] * len(paths), {"extractor": "drawn"}, None, kind)


def named(table: Embeddings) -> Embeddings:
    """The same rows, with names and groups that somebody gives by hand."""
    names = [f"{path}#{row % 3 + 1}" if row % 3 else path for row, path in enumerate(table.paths)]
    return replace(table, paths=names, groups=list(table.paths))


def test_each_row_has_a_path_of_its_own_and_the_group_of_its_image() -> None:
    table = with_own_paths(regions())
    assert table.paths == named(regions()).paths and table.groups == regions().paths
    assert torch.equal(table.embedding, regions().embedding)
    assert with_own_paths(table) is table
    few = Embeddings.from_numpy([[1.0, 2.0]] * 4, ["a", "a", "a#2", "b"])
    found = with_own_paths(few)
    assert found.paths == ["a", "a#3", "a#2", "b"] and found.groups == ["a", "a", None, None]
    given = replace(few, groups=["g", "g", None, "h"])
    assert with_own_paths(given).groups == ["g", "g", None, "h"]


def test_an_image_in_two_groups_is_refused() -> None:
    table = replace(regions(), groups=[f"g{row}" for row in range(72)])
    with pytest.raises(UserError, match=r"rows of '00\.jpg' are in the groups 'g0' and 'g1'; give them the same"):
        with_own_paths(table)


def sides(result: ProbeResult) -> dict[str, set[str | None]]:
    """Image -> splits that its regions are in."""
    found: dict[str, set[str | None]] = {}
    for path, split in zip(result.splits.paths, result.splits.splits, strict=True):
        found.setdefault(path.partition("#")[0], set()).add(split)
    return found


@pytest.mark.parametrize(
    "kind", ["number", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("class", "labels"))]
)
def test_a_probe_is_that_of_rows_named_by_hand(kind: Kind) -> None:
    few = {"shots": (1,), "few_shot_seeds": (0,)} if kind == "class" else {}
    result, expected = (probe_targets(t, coarse_to_fine=True, **few) for t in (regions(kind), named(regions(kind))))  # type: ignore[arg-type]
    assert result.report == expected.report and result.splits.paths == expected.splits.paths
    assert len(result.splits) == 72 and all(len(splits) == 1 for splits in sides(result).values())


def test_splits_that_break_an_image_are_refused() -> None:
    table = replace(regions(), splits=["train", "val", "test"] * 24)
    with pytest.raises(UserError, match="group"):
        probe_targets(table)


def test_folds_a_ranking_and_an_audit_take_such_a_table() -> None:
    for fold in fold_tables(regions(), 3, seed=0):
        assert len(set(zip(fold.groups or (), fold.splits, strict=True))) == 24
    found, expected = (
        measure_candidate(Known("x", 1, 5, None), table, **OPTIONS)  # type: ignore[arg-type]
        for table in (regions(), named(regions()))
    )
    assert (found.log_me, found.h_score, found.units) == (expected.log_me, expected.h_score, expected.units)
    audit = audit_embeddings(regions())
    assert len(audit.quality) == audit.rows == 72
    assert audit == audit_embeddings(named(regions()))


@pytest.mark.slow
def test_the_command_takes_a_table_of_regions_and_its_splits(tmp_path: Path) -> None:
    with chdir(tmp_path):
        regions().save("regions.parquet")
        done = transferkit("probe", "regions.parquet", "--fast", "--out", "one")
        assert done.status == 0, done.err
        again = transferkit("probe", "regions.parquet", "--fast", "--out", "two", "--splits", "one/splits.parquet")
        assert again.status == 0, again.err
        one, two = (pq.read_table(f"{name}/predictions.parquet") for name in ("one", "two"))
        assert one == two and one.num_rows == len(set(one["path"].to_pylist()))
