"""scikit-learn estimators over an extractor: for Pipeline, cross_val_score and GridSearchCV."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps, loads
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.validation import check_is_fitted, validate_data

from transferkit.data.memory_table import MEMORY, MemoryTable, check_present, hold
from transferkit.embed import cached_features
from transferkit.extractor import Extractor

Array = NDArray[Any]


class OnExtractor(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share: from images to the embeddings of an extractor, through the cache of features."""

    extractor: str | Extractor | None
    weights: str
    pooling: str | None
    preprocessing: Mapping[str, Any] | None
    normalize: bool

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of the input: images, unless the embeddings are given."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.extractor is None
        tags.input_tags.string = self.extractor is not None
        return tags

    def embed(self, X: Any, reset: bool) -> Array:
        """Return the embeddings of images, or check given ones: float (N, D)."""
        if self.extractor is None:
            values: Array = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        else:
            if reset:
                self.extractor_ = self.open()
            values = embeddings_of(X, self.extractor_)
            if reset:
                self.n_features_in_ = values.shape[1]
        found: Array = normalize(values) if self.normalize else values
        return found

    def open(self) -> Extractor:
        """Return the extractor; one of the same arguments is opened once per process."""
        if isinstance(self.extractor, Extractor):
            return self.extractor
        preprocessing = None if self.preprocessing is None else dumps(dict(self.preprocessing), sort_keys=True)
        return opened(str(self.extractor), self.weights, self.pooling, preprocessing)


class EmbeddingTransformer(TransformerMixin, OnExtractor):  # type: ignore[misc]
    """Images to embeddings, as a scikit-learn transformer.

    Args:
        extractor: what ``Extractor.from_pretrained`` opens, or an extractor; None passes embeddings through.
        weights: ``DEFAULT``, ``none`` (random, of seed 0) or a path.
        pooling: how features become one embedding; None is the extractor's own.
        preprocessing: fields to override, such as ``{"image_size": 160}``.
        normalize: whether embeddings are scaled to length 1.
    """

    def __init__(
        self,
        extractor: str | Extractor | None = "resnet18",
        *,
        weights: str = "DEFAULT",
        pooling: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        normalize: bool = False,
    ) -> None:
        self.extractor = extractor
        self.weights = weights
        self.pooling = pooling
        self.preprocessing = preprocessing
        self.normalize = normalize

    def fit(self, X: Any, y: Any = None) -> Self:
        """Open the extractor; the images are looked at in :meth:`transform`.

        Args:
            X: N images in any form that ``Extractor.embed`` takes.
            y: not used.

        Raises:
            UserError: the extractor cannot be opened.
        """
        if self.extractor is None:
            self.embed(X, reset=True)
            return self
        self.extractor_ = self.open()
        self.n_features_in_ = self.extractor_.embed_dim
        return self

    def transform(self, X: Any) -> Array:
        """Return the embeddings, float (N, D).

        Raises:
            UserError: an image cannot be read.
        """
        check_is_fitted(self, "n_features_in_")
        return self.embed(X, reset=False)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Array:
        """Return the names ``embedding0``, ``embedding1``, ... of the columns."""
        check_is_fitted(self, "n_features_in_")
        return np.array([f"embedding{number}" for number in range(self.n_features_in_)], dtype=object)


class TransferClassifier(ClassifierMixin, OnExtractor):  # type: ignore[misc]
    """Logistic regression on the embeddings of images, as a scikit-learn classifier.

    Args:
        extractor: what ``Extractor.from_pretrained`` opens, or an extractor; None takes embeddings.
        C: inverse strength of the L2 regularization. With two classes it acts as 2 C does in scikit-learn's
            LogisticRegression, which has one weight vector for both; from three classes on it is the same.
        standardize: whether embeddings are standardized by the mean and deviation of the training images.
        weights: ``DEFAULT``, ``none`` (random, of seed 0) or a path.
        pooling: how features become one embedding; None is the extractor's own.
        preprocessing: fields to override, such as ``{"image_size": 160}``.
        normalize: whether embeddings are scaled to length 1.
        class_weight: ``balanced``, or a weight per class.
        max_iter: of the solver, at most.
    """

    def __init__(
        self,
        extractor: str | Extractor | None = "resnet18",
        *,
        C: float = 1.0,
        standardize: bool = True,
        weights: str = "DEFAULT",
        pooling: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        normalize: bool = False,
        class_weight: Mapping[Any, float] | str | None = None,
        max_iter: int = 1000,
    ) -> None:
        self.extractor = extractor
        self.C = C
        self.standardize = standardize
        self.weights = weights
        self.pooling = pooling
        self.preprocessing = preprocessing
        self.normalize = normalize
        self.class_weight = class_weight
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the head.

        Args:
            X: N images in any form that ``Extractor.embed`` takes.
            y: N classes.

        Raises:
            UserError: the extractor cannot be opened, an image cannot be read, or a class is missing.
        """
        floats = self.extractor is None and getattr(getattr(y, "dtype", None), "kind", "") == "f"
        if hasattr(y, "__iter__") and not floats:  # scikit-learn refuses NaN of floats, and makes others a text 'nan'
            check_present("y", y)
        if self.extractor is None:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        rows = self.embed(X, reset=True)
        self.scaler_ = StandardScaler(with_mean=self.standardize, with_std=self.standardize).fit(rows)
        self.classifier_ = LogisticRegression(C=self.C, class_weight=self.class_weight, max_iter=self.max_iter)
        self.classifier_.fit(self.scaler_.transform(rows), y)
        self.classes_ = self.classifier_.classes_
        self.n_iter_ = self.classifier_.n_iter_
        return self

    def scaled(self, X: Any) -> Array:
        """Return the standardized embeddings of images."""
        check_is_fitted(self, "classifier_")
        rows: Array = self.scaler_.transform(self.embed(X, reset=False))
        return rows

    def decision_function(self, X: Any) -> Array:
        """Return the logits: (N, classes), or (N,) of two classes."""
        rows = self.scaled(X)
        logits: Array = self.classifier_.decision_function(rows)
        return logits

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities, (N, classes)."""
        rows = self.scaled(X)
        shares: Array = self.classifier_.predict_proba(rows)
        return shares

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each image, (N,)."""
        rows = self.scaled(X)
        classes: Array = self.classifier_.predict(rows)
        return classes


@lru_cache(maxsize=4)
def opened(source: str, weights: str, pooling: str | None, preprocessing: str | None) -> Extractor:
    """Open an extractor; random weights are those of seed 0, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Extractor.from_pretrained(source, weights, pooling, loads(preprocessing) if preprocessing else None)


def embeddings_of(images: Any, extractor: Extractor) -> Array:
    """Return the embeddings of images, float32 (N, D), each different one computed once and kept in the cache.

    An image's name there is the hash of its pixels, so the folds of a cross-validation share them.

    Raises:
        UserError: an image cannot be read, or there are none.
    """
    held, hashes = hold(images)
    different = {hashes[name]: image for name, image in held.items()}
    paths = tuple(sorted(different))
    bare = (None,) * len(paths)
    itself = dict(zip(paths, paths, strict=True))
    table = MemoryTable(MEMORY, paths, bare, bare, MEMORY, images=different, hashes=itself)
    features = cached_features(extractor, table)
    found: Array = features.embedding[[features.row_of[name] for name in hashes.values()]].numpy()
    return found
