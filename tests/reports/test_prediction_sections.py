"""The section of confidence also shows what calibration on val gives, with torchmetrics' calibration error."""

from dataclasses import replace

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.reports.content import Charts
from transferkit.reports.mistakes import PredictionTable
from transferkit.reports.prediction_sections import calibration


def test_calibrated_confidence_has_its_own_diagram() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 4, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    preds, (sure, mild) = logits.argmax(1), ((3 * logits).softmax(1), logits.softmax(1))
    names = ["a", "b", "c", "d"]
    paths, labels = [str(row) for row in range(500)], [names[k] for k in target]
    plain = PredictionTable(paths, labels, [names[k] for k in preds], sure.amax(1).double().numpy())
    (charts,) = calibration(plain, None).blocks
    assert isinstance(charts, Charts) and len(charts.charts) == 2
    (charts,) = calibration(replace(plain, calibrated=mild.amax(1).double().numpy()), None).blocks
    assert isinstance(charts, Charts) and len(charts.charts) == 3
    oracle = float(multiclass_calibration_error(mild, target, 4, n_bins=15))
    stated = float(np.mean(mild.amax(1).numpy()))
    assert charts.charts[1].caption == (
        f"With the temperature fitted on val: {100 * stated:.1f}% stated, calibration error {100 * oracle:.1f}%."
    )
    assert charts.charts[0].svg != charts.charts[1].svg
