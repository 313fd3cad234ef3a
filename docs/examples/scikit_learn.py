"""An extractor in scikit-learn's Pipeline, cross-validation and search; each image is embedded once."""

from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from transferkit import EmbeddingTransformer, TransferClassifier

images = sorted(Path("photos/train").rglob("*.*"))
labels = [path.parent.name for path in images]

print(cross_val_score(TransferClassifier("resnet18"), images, labels, cv=3))
pipeline = make_pipeline(EmbeddingTransformer("resnet18", normalize=True), LogisticRegression())
search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1, 10]}, cv=3).fit(images, labels)
print(search.best_params_, search.predict(["photos/val/limes/0.jpg"]))
