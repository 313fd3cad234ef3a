"""The quickstart's figure: what it shows of the table, the drawings and the predictions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from transferkit.training import demo_figure
from transferkit.training.demo_backbone import Row, Study
from transferkit.training.symbols import write_symbols

APPROACHES = {"pretraining": 0.9, "from scratch": 0.5, "random, frozen": 0.6, "transferred, frozen": 0.8}


def rows(name: str) -> list[Row]:
    return [Row(name, approach, 8, 1, 1, value, 0.02, 1.0) for approach, value in APPROACHES.items()]


def test_bars_have_the_table_s_heights() -> None:
    axes = Figure().subplots()
    demo_figure.draw_bars(axes, rows("ViT"))
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.6, 0.8]  # of the digits only
    assert axes.get_title() == "ViT"


def test_the_whole_figure(tmp_path: Path) -> None:
    study = Study(tmp_path, drawings=2)
    study.symbols.mkdir()
    write_symbols(study.symbols, 2, 0, lambda written: None)
    table = [*rows("ResNet18"), *rows("ViT")]
    run = study.folder("ViT", "transferred, frozen") / "0"
    run.mkdir(parents=True)
    names = [f"{row:04d}.png" for row in range(40)]
    columns = {"path": names, "label": [str(n) for n in load_digits().target[:40]], "prediction": ["1"] * 40}
    pq.write_table(pa.table(columns), run / "predictions.parquet")
    images, labels, predictions = demo_figure.some_digits(study, table[-1])
    assert labels == columns["label"][: demo_figure.SHOWN] and set(predictions) == {"1"}
    pixels = np.rint(load_digits().images[: demo_figure.SHOWN] * 255 / 16)
    assert np.array_equal(np.stack(images), pixels)
    demo_figure.draw(study, table, table[-1], tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.format == "PNG" and figure.width > figure.height
