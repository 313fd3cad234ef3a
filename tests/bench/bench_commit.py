"""Speed of `embed` from JPEG files against an earlier commit of this repository, in turns.

python -m tests.bench.bench_commit [--commit 3c9c65c] [--count 128]

Both run in processes of their own, with the same weights, photographs and batches of 16; the earlier commit is checked
out beside a temporary folder. The embeddings in float32 and bfloat16 are compared, those of the earlier commit in
float32 being right. int8 needs the extra of that name.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from tests.bench.inputs import Network, photographs, resnet, vit_small, workplace
from tests.bench.timing import pairs
from transferkit.extractor.quantization import nncf_version

# Of ours, of theirs, and how many times as fast: issue 19 asks for it of 3c9c65c.
ROWS = {
    vit_small: (("32", "32", 2.0), ("bf16", "bf16", 1.2), ("int8", "bf16", 2.0)),
    resnet: (("32", "32", 1.2), ("bf16", "bf16", 1.2), ("int8", "bf16", 2.3)),
}
# Runs in either commit: reads a precision, embeds, and answers with the seconds of it.
SERVER = """
import json, sys, time
from safetensors.torch import save_file
from transferkit.embed import embed
from transferkit.extractor import Extractor
backbone, weights, folder = sys.argv[1:]
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    precision, out = json.loads(line)
    extractor = Extractor.from_pretrained(backbone, weights)
    if precision == "int8":
        from transferkit.data.image_table import open_images
        from transferkit.embed.samples import quantization_of
        extractor.run_with("openvino", "int8", quantization_of(extractor, open_images(folder)))
        forward = extractor.forward()
    else:
        forward = extractor.forward(precision)
    embed(folder, extractor, 16, forward=forward)
    start = time.perf_counter()
    found = embed(folder, extractor, 16, forward=forward).embedding
    seconds = time.perf_counter() - start
    save_file({"embedding": found}, out)
    print(json.dumps(seconds), flush=True)
"""


class Server:
    """A process that embeds with the package of one checkout."""

    def __init__(self, checkout: Path, network: Network, folder: Path, place: Path) -> None:
        weights = str(network.options.get("weights", "DEFAULT"))
        self.out = place / f"{checkout.name}.safetensors"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, network.options["backbone"], weights, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=place,
            env={**os.environ, "PYTHONPATH": str(checkout), "TRANSFERKIT_CACHE": str(place / f"cache-{checkout.name}")},
        )  # fmt: skip
        assert self.answer() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline() or "null")

    def seconds(self, precision: str) -> float:
        """Embed all once to warm up, then once more; return the time of the latter."""
        assert self.process.stdin
        print(json.dumps([precision, str(self.out)]), file=self.process.stdin, flush=True)
        found = self.answer()
        assert isinstance(found, float), f"{precision} failed"
        return found


@contextmanager
def checkout(commit: str, place: Path) -> Iterator[Path]:
    """Check a commit out into a folder."""
    folder, root = place / "earlier", Path(__file__).parents[2]
    git = ["git", "-C", str(root), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    """Print a line per network and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="3c9c65c")
    parser.add_argument("--count", type=int, default=128, help="photographs")
    given = parser.parse_args()
    for make, rows in ROWS.items():
        with workplace() as place, checkout(given.commit, place) as earlier, ExitStack() as stack:
            network, folder = make(place), photographs(place, given.count)
            ours, theirs = (
                stack.enter_context(Server(each, network, folder, place))
                for each in (Path(__file__).parents[2], earlier)
            )
            for precision, other, target in rows:
                if precision == "int8" and nncf_version() is None:
                    print(f"{network.name}, int8: the extra int8 is not installed")
                    continue
                report(network.name, ours, theirs, precision, other, target, given.count)


def report(name: str, ours: Server, theirs: Server, precision: str, other: str, target: float, count: int) -> None:
    """Time both in turns and print how many times as fast ours is, and how near the embeddings are."""
    both = [(ours.seconds(precision), theirs.seconds(other)) for _ in range(pairs)]
    ratios = [before / now for now, before in both]
    found, right = (load_file(server.out)["embedding"] for server in (ours, theirs))
    apart = (found - right).norm(dim=1) / right.norm(dim=1)
    cosine = torch.cosine_similarity(found, right)
    speeds = [count / statistics.median(seconds) for seconds in zip(*both, strict=True)]
    median = statistics.median(ratios)
    print(
        f"{name}, {precision} against {other}: {median:.2f} ({min(ratios):.2f}–{max(ratios):.2f}), at least {target}: "
        f"{'reached' if median >= target else 'missed'}; {speeds[0]:.0f} and {speeds[1]:.0f} images/s; "
        f"largest relative difference {apart.max():.1e}, cosine {cosine.mean():.4f}, least {cosine.min():.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
