"""Processes without a shared cache embed together nevertheless, and none waits forever."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import write_photos
from transferkit.data.image_table import open_images
from transferkit.embed import embed
from transferkit.extractor import Extractor

ROOT = Path(__file__).parents[2]
COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
EACH = """
import json, logging, os, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
from transferkit.data.image_table import open_images
from transferkit.embed import cached_features
from transferkit.runtime.ranks import joined
from transferkit.errors import UserError
from transferkit.extractor import Extractor

rank, scenario = int(sys.argv[1]), sys.argv[2]
logging.basicConfig(format="%(message)s", stream=sys.stderr)
os.environ["TRANSFERKIT_CACHE"] = f"cache-{rank}"
distributed.init_process_group("gloo", init_method=f"file://{Path.cwd()}/meet-{scenario}", rank=rank, world_size=2,
                               timeout=timedelta(seconds=20))
if scenario == "unseen" and rank == 1:  # another machine
    is_file = Path.is_file
    Path.is_file = lambda self: self.suffix != ".token" and is_file(self)
if scenario == "slow" and rank == 0:  # longer than the default group waits
    import time
    from transferkit.embed import features
    look_up = features.look_up
    features.look_up = lambda *arguments: (time.sleep(25), look_up(*arguments))[1]
if scenario == "read-only" and rank == 0:
    Path("cache-0").write_text("no folder")
torch.manual_seed(0)
options = {"resize": [32, 32], "crop": [32, 32]}
extractor = Extractor.from_pretrained("shufflenet_v2_x0_5", "none", preprocessing=options)
try:
    with joined() as ranks:
        found = cached_features(extractor, open_images("photos"), ranks=ranks)
        again = cached_features(extractor, open_images("photos"), ranks=ranks)
    torch.save({"embedding": found.embedding, "again": again.embedding}, f"{scenario}-{rank}.pt")
    told = {"paths": list(found.paths), "metadata": dict(found.metadata)}
    Path(f"{scenario}-{rank}.json").write_text(json.dumps(told))
except UserError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"), COLOURS, {"train": 21, "val": 4})  # 50 images: 4 batches in several shards
    Path("photos/val/limes/1.png").write_bytes(b"no picture")
    Path("each.py").write_text(EACH)


def run(scenario: str) -> list[tuple[int, str]]:
    """Return exit status and stderr of each of two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "each.py"]
    both = [
        subprocess.Popen([*command, str(rank), scenario], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


def results(scenario: str) -> list[dict[str, Any]]:
    return [
        json.loads(Path(f"{scenario}-{rank}.json").read_text()) | torch.load(f"{scenario}-{rank}.pt") for rank in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["unseen", "seen", "slow"])
def test_every_process_gets_the_features_of_one(scenario: str) -> None:
    done = run(scenario)
    assert [status for status, _ in done] == [0, 0], done
    torch.manual_seed(0)
    options = {"resize": [32, 32], "crop": [32, 32]}
    extractor = Extractor.from_pretrained("shufflenet_v2_x0_5", "none", preprocessing=options)
    alone = embed(open_images("photos"), extractor, on_error="skip")
    for one in results(scenario):
        assert torch.equal(one["embedding"], alone.embedding), "not what one process gives"
        assert torch.equal(one["again"], alone.embedding)
        assert one["paths"] == list(alone.paths) and list(one["metadata"]["broken"]) == ["val/limes/1.png"]
    assert not list(Path("cache-1").rglob("features/*/*")), "the first one's cache holds them"
    assert [path.suffix for path in Path("cache-0").rglob("features/*/*")] in ([".parquet"], [".parquet"] * 2)
    warned = [text.count("the other processes cannot write the cache folder") for _, text in done]
    assert bool(warned[0]) is (scenario == "unseen") and not warned[1]


@pytest.mark.slow
def test_where_the_first_cannot_write_all_of_them_end() -> None:
    (first, said), (second, heard) = run("read-only")
    assert (first, second) == (1, 1)
    assert "refused: cannot write the cache folder" in said
    assert "refused: cannot write the cache folder" in heard  # only the first process reports to the user
