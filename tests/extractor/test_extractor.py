import pytest
import torch
from torch import Tensor
from torchvision import models

from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing


@torch.no_grad()
def test_embed_equals_torchvisions_own_transforms_and_model(photos: list[Tensor]) -> None:
    extractor = Extractor.from_pretrained("resnet18", "none")
    model = models.resnet18().eval()
    model.fc = torch.nn.Identity()
    model.load_state_dict(extractor.backbone.model.state_dict())
    transforms = models.ResNet18_Weights.DEFAULT.transforms()
    oracle = model(torch.stack([transforms(photo) for photo in photos[:2]]))
    torch.testing.assert_close(extractor.embed(photos[:2]), oracle, atol=1e-5, rtol=0)


def test_overrides_of_the_preprocessing() -> None:
    extractor = Extractor.from_pretrained("resnet18", "none", preprocessing={"image_size": 64, "mean": [0, 0, 0]})
    assert extractor.preprocessing == Preprocessing.imagenet().replace(image_size=64, mean=(0, 0, 0))
    assert extractor.spec()["preprocessing"] == extractor.preprocessing.to_dict()
    assert extractor.backbone.preprocessing == extractor.preprocessing
    with pytest.raises(UserError, match="`preprocessing` has no field 'imagesize'; it takes image_size, resize"):
        Extractor.from_pretrained("resnet18", "none", preprocessing={"imagesize": 64})
    with pytest.raises(UserError, match="alexnet cannot embed an image of 16 x 16 pixels"):
        Extractor.from_pretrained("alexnet", "none", preprocessing={"image_size": 16})
