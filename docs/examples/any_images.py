"""Images in any form, also mixed, become embeddings and similarities."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from transferkit import Extractor

extractor = Extractor.from_pretrained("resnet18")
path = "photos/val/apples/0.jpg"
with Path(path).open("rb") as file:
    forms = [path, Path(path), Path(path).read_bytes(), Image.open(path), np.array(Image.open(path)), file]
    vectors = extractor.embed(forms)  # float32 (6, 512)
assert np.allclose(vectors, vectors[0], atol=1e-5)

dataset = ImageFolder("photos/val")  # of torch, or of Hugging Face; labels are left out
cosine = extractor.similarity([path], dataset, progress=True)  # (1, 12)
print("nearest:", dataset.samples[int(cosine.argmax())][0])
