"""The scikit-learn estimators: its own checks, its Pipeline and searches, the numbers of plain scikit-learn."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import check_estimator

from tests.extractor.examples import transformer
from transferkit.embed import features
from transferkit.errors import UserError
from transferkit.probe.estimators import EmbeddingTransformer, TransferClassifier

pytestmark = pytest.mark.usefixtures("own_cache")

TINY: dict[str, Any] = {"weights": "none", "preprocessing": {"image_size": 32}}
COLORS = {"apples": (190, 50, 40), "limes": (70, 180, 60), "plums": (90, 40, 130)}


@pytest.fixture(scope="module")
def pictures() -> tuple[list[Any], list[str]]:
    noise = np.random.default_rng(0)
    labels = list(COLORS) * 8
    arrays = [np.clip(noise.normal(COLORS[name], 60, (32, 40, 3)), 0, 255).astype(np.uint8) for name in labels]
    return [torch.from_numpy(a).permute(2, 0, 1) if row % 2 else a for row, a in enumerate(arrays)], labels


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [TransferClassifier(None), EmbeddingTransformer(None, normalize=True)])
def test_scikit_learn_s_checks_of_given_embeddings(estimator: Any) -> None:
    results = check_estimator(estimator, on_skip=None)
    assert len(results) > 40
    assert {each["check_name"] for each in results if each["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.filterwarnings("ignore:Can't test estimator")  # it has no images to test with
@pytest.mark.parametrize("estimator", [TransferClassifier(), EmbeddingTransformer()])
def test_scikit_learn_s_checks_that_need_no_input(estimator: Any) -> None:
    assert all(each["status"] == "passed" for each in check_estimator(estimator))
    assert clone(estimator).get_params() == estimator.get_params()


def test_a_transformer_gives_the_embeddings(pictures: tuple[list[Any], list[str]]) -> None:
    images, _ = pictures
    extractor = transformer("vit", "cls")
    expected = extractor.embed(images).numpy()
    given = EmbeddingTransformer(extractor)
    found = given.fit_transform(images)
    assert np.allclose(found, expected, atol=1e-5) and found.dtype == np.float32
    assert (
        list(given.get_feature_names_out()[:2]) == ["embedding0", "embedding1"]
        and given.n_features_in_ == found.shape[1]
    )
    repeated = [images[0], images[1], images[0]]
    assert np.allclose(given.transform(repeated), expected[[0, 1, 0]], atol=1e-5)
    assert np.allclose(
        EmbeddingTransformer(extractor, normalize=True).fit_transform(images), normalize(expected), atol=1e-5
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_a_classifier_is_logistic_regression_on_the_embeddings(
    classes: int, pictures: tuple[list[Any], list[str]]
) -> None:
    kept = [row for row, name in enumerate(pictures[1]) if name in list(COLORS)[:classes]]
    images, labels = [pictures[0][row] for row in kept], [pictures[1][row] for row in kept]
    extractor = transformer("vit", "cls")
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    oracle.fit(extractor.embed(images).numpy(), labels)
    given = TransferClassifier(extractor, C=0.1).fit(images, labels)
    rows = extractor.embed(images[:5]).numpy()
    assert list(given.classes_) == list(COLORS)[:classes]
    for name in ("predict_proba", "decision_function"):
        assert np.allclose(getattr(given, name)(images[:5]), getattr(oracle, name)(rows), atol=1e-3)
    assert list(given.predict(images[:5])) == list(oracle.predict(rows))
    again = pickle.loads(pickle.dumps(given))
    assert np.array_equal(again.predict_proba(images[:5]), given.predict_proba(images[:5]))


def test_an_array_of_paths_is_the_same_as_a_list(photo_folder: Path) -> None:
    paths = sorted((photo_folder / "train").rglob("*.*"))
    labels = np.array([path.parent.name for path in paths])
    array = np.array(list(map(str, paths)))
    given = TransferClassifier(transformer("vit", "cls"))
    expected = given.fit(paths, labels).predict_proba(paths)
    assert np.array_equal(given.fit(array, labels).predict_proba(array), expected)
    transform = EmbeddingTransformer(given.extractor)
    assert np.array_equal(transform.fit_transform(array), transform.fit_transform(paths))
    folds = {"cv": 2, "error_score": "raise"}
    for estimator in (given, make_pipeline(transform, LogisticRegression())):
        scores = cross_val_score(estimator, array, labels, **folds)
        assert np.array_equal(scores, cross_val_score(estimator, paths, labels, **folds))


@pytest.mark.slow
def test_searches_compute_each_image_once(
    pictures: tuple[list[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = pictures
    computed = 0
    compute = features.compute

    def counted(extractor: Any, table: Any, plan: features.Plan, *rest: Any) -> None:
        nonlocal computed
        computed += len(plan.missing)
        compute(extractor, table, plan, *rest)

    monkeypatch.setattr(features, "compute", counted)
    scores = cross_val_score(TransferClassifier(**TINY), images, labels, cv=3)
    assert scores.shape == (3,) and scores.mean() > 0.5
    pipeline = make_pipeline(EmbeddingTransformer(**TINY), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1.0]}, cv=2).fit(images, labels)
    assert search.best_score_ > 0.5 and len(search.predict(images[:2])) == 2
    search = GridSearchCV(TransferClassifier(**TINY), {"C": [0.1, 1.0], "normalize": [False, True]}, cv=2)
    assert search.fit(images, labels).best_score_ > 0.5
    assert computed == len(images)


def test_bad_input_is_told(pictures: tuple[list[Any], list[str]]) -> None:
    images, labels = pictures
    given = TransferClassifier(transformer("vit", "cls"))
    with pytest.raises(UserError, match="embed takes a list of images, not one ndarray"):
        given.fit(images[0], labels)
    with pytest.raises(UserError, match="`images`: item 1 cannot be read as an image"):
        given.fit([images[0], 3], labels[:2])
    with pytest.raises(UserError, match="`images` is empty"):
        given.fit([], [])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        given.fit(images, labels[:3])


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, ""])
@pytest.mark.parametrize("form", [list, pd.Series, lambda values: np.array(values, dtype=object)])
def test_a_missing_class_is_not_a_class(missing: Any, form: Any, pictures: tuple[list[Any], list[str]]) -> None:
    for given, images in ((transformer("vit", "cls"), pictures[0][:4]), (None, np.eye(4))):
        with pytest.raises(UserError, match=r"^y: item 2 is missing; give a class, or leave the image out$"):
            TransferClassifier(given).fit(images, form(["a", "b", missing, "a"]))
