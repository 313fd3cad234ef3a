"""What ``probe`` prints of several labels, and of a number, per image."""

from collections.abc import Mapping
from typing import Any

from transferkit.cli import console

MOST_LABELS = 20  # printed, the rest is in probe.json


def headline_measures(content: Mapping[str, Any]) -> dict[str, float]:
    """Return what the folds of a probe are summarized by, and what an export's card names."""
    linear, target = content["linear"], content.get("target", "class")
    if target == "class":
        return {f"{name}/top1": content[name]["top1"] for name in ("linear", "knn", "nearest_class_mean")}
    names = ("map", "f1_macro", "f1_micro") if target == "labels" else ("mae", "r2", "spearman")
    return {f"linear/{name}": linear[name] for name in names}


def card_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an exported head, by the names that ``fit`` logs."""
    if content.get("target", "class") == "class":
        return {"test/acc": content["linear"]["top1"]}
    return {f"test/{name.partition('/')[2]}": value for name, value in headline_measures(content).items()}


def print_labels(content: Mapping[str, Any]) -> None:
    """Print the report of several labels."""
    linear = content["linear"]
    chosen = f"C = {linear['C']:.3g}, standardization {linear['standardisation']}"
    rows: list[list[Any]] = [
        ["mAP", f"{linear['map']:.4f}", chosen],
        ["F1, mean over labels", f"{linear['f1_macro']:.4f}", "at thresholds chosen on val"],
        ["F1, all labels together", f"{linear['f1_micro']:.4f}", "at thresholds chosen on val"],
    ]
    for name, found in list(linear["per_class"].items())[:MOST_LABELS]:
        detail = f"F1 {found['f1']:.4f} from {linear['thresholds'][name]:.3g} on; {found['rows']} images"
        rows.append([f"average precision, {name}", f"{found['ap']:.4f}", detail])
    console.table(["measure", "value", "detail"], rows, title(content, f"{len(content['class_names'])} labels"))


def print_number(content: Mapping[str, Any]) -> None:
    """Print the report of a number."""
    linear = content["linear"]
    words = {"mae": "mean absolute error", "r2": "R²", "spearman": "Spearman's correlation"}
    details = {
        "mae": f"of the mean of train: {linear['mean_absolute_deviation']:.4g}",
        "r2": f"strength {linear['alpha']:.3g}, standardization {linear['standardisation']}",
    }
    rows: list[list[Any]] = []
    for name, word in words.items():
        low, high = linear["intervals"][name]
        rows.append([word, f"{linear[name]:.4g}", f"{low:.4g} – {high:.4g}", details.get(name)])
    console.table(["measure", "value", "95 % interval", "detail"], rows, title(content, "a number per image"))


def title(content: Mapping[str, Any], what: str) -> str:
    """Return the title of the table."""
    splits = content["splits"]
    counts = f"{splits['train']} train, {splits['val']} val, {splits['test']} test images"
    return f"{what}; {counts} ({splits['source']})"
