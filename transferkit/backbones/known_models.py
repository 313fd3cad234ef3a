"""Backbones that are known by name, with what one asks before choosing: nothing is opened, built or downloaded."""

from functools import cache
from typing import NamedTuple


class KnownModel(NamedTuple):
    """A backbone as ``transferkit models`` lists it; what is not known without building it is None.

    Attributes:
        name: as ``extractor`` takes it.
        library: that opens it.
        parameters: of the published model: of torchvision with its classifier, of images and texts the image tower.
        embed_dim: width of the default pooling.
        image_size: side of the images that it was made for.
        poolings: the default first.
        words: whether it can be asked by words.
    """

    name: str
    library: str
    parameters: int | None
    embed_dim: int | None
    image_size: int | None
    poolings: tuple[str, ...]
    words: bool = False


POOLINGS = {
    "tv": ("avg", "logits"),
    "vit": ("cls", "mean", "cls+mean", "pooler"),
    "mean": ("mean", "pooler"),
    "beit": ("pooler", "cls", "mean", "cls+mean"),
    "map": ("pooler", "mean"),
    "dual": ("pooler", "projection", "mean"),
}
# name, parameters, width, side, poolings; checked against the libraries by tests/backbones/test_known_models.py
TORCHVISION = """
alexnet 61100840 4096 224 tv
convnext_base 88591464 1024 224 tv
convnext_large 197767336 1536 224 tv
convnext_small 50223688 768 224 tv
convnext_tiny 28589128 768 224 tv
densenet121 7978856 1024 224 tv
densenet161 28681000 2208 224 tv
densenet169 14149480 1664 224 tv
densenet201 20013928 1920 224 tv
efficientnet_b0 5288548 1280 224 tv
efficientnet_b1 7794184 1280 240 tv
efficientnet_b2 9109994 1408 288 tv
efficientnet_b3 12233232 1536 300 tv
efficientnet_b4 19341616 1792 380 tv
efficientnet_b5 30389784 2048 456 tv
efficientnet_b6 43040704 2304 528 tv
efficientnet_b7 66347960 2560 600 tv
efficientnet_v2_l 118515272 1280 480 tv
efficientnet_v2_m 54139356 1280 480 tv
efficientnet_v2_s 21458488 1280 384 tv
googlenet 6624904 1024 224 tv
inception_v3 27161264 2048 299 tv
maxvit_t 30919624 512 224 tv
mnasnet0_5 2218512 1280 224 tv
mnasnet0_75 3170208 1280 224 tv
mnasnet1_0 4383312 1280 224 tv
mnasnet1_3 6282256 1280 224 tv
mobilenet_v2 3504872 1280 224 tv
mobilenet_v3_large 5483032 1280 224 tv
mobilenet_v3_small 2542856 1024 224 tv
regnet_x_16gf 54278536 2048 224 tv
regnet_x_1_6gf 9190136 912 224 tv
regnet_x_32gf 107811560 2520 224 tv
regnet_x_3_2gf 15296552 1008 224 tv
regnet_x_400mf 5495976 400 224 tv
regnet_x_800mf 7259656 672 224 tv
regnet_x_8gf 39572648 1920 224 tv
regnet_y_128gf 644812894 7392 384 tv
regnet_y_16gf 83590140 3024 224 tv
regnet_y_1_6gf 11202430 888 224 tv
regnet_y_32gf 145046770 3712 224 tv
regnet_y_3_2gf 19436338 1512 224 tv
regnet_y_400mf 4344144 440 224 tv
regnet_y_800mf 6432512 784 224 tv
regnet_y_8gf 39381472 2016 224 tv
resnet101 44549160 2048 224 tv
resnet152 60192808 2048 224 tv
resnet18 11689512 512 224 tv
resnet34 21797672 512 224 tv
resnet50 25557032 2048 224 tv
resnext101_32x8d 88791336 2048 224 tv
resnext101_64x4d 83455272 2048 224 tv
resnext50_32x4d 25028904 2048 224 tv
shufflenet_v2_x0_5 1366792 1024 224 tv
shufflenet_v2_x1_0 2278604 1024 224 tv
shufflenet_v2_x1_5 3503624 1024 224 tv
shufflenet_v2_x2_0 7393996 2048 224 tv
squeezenet1_0 1248424 512 224 tv
squeezenet1_1 1235496 512 224 tv
swin_b 87768224 1024 224 tv
swin_s 49606258 768 224 tv
swin_t 28288354 768 224 tv
swin_v2_b 87930848 1024 256 tv
swin_v2_s 49737442 768 256 tv
swin_v2_t 28351570 768 256 tv
vgg11 132863336 4096 224 tv
vgg11_bn 132868840 4096 224 tv
vgg13 133047848 4096 224 tv
vgg13_bn 133053736 4096 224 tv
vgg16 138357544 4096 224 tv
vgg16_bn 138365992 4096 224 tv
vgg19 143667240 4096 224 tv
vgg19_bn 143678248 4096 224 tv
vit_b_16 86567656 768 224 tv
vit_b_32 88224232 768 224 tv
vit_h_14 633470440 1280 518 tv
vit_l_16 304326632 1024 224 tv
vit_l_32 306535400 1024 224 tv
wide_resnet101_2 126886696 2048 224 tv
wide_resnet50_2 68883240 2048 224 tv
"""
TRANSFORMERS = """
OFA-Sys/chinese-clip-vit-base-patch16 85799424 768 224 dual
facebook/convnext-tiny-224 27820128 768 224 map
facebook/convnextv2-tiny-22k-224 27866496 768 224 map
facebook/deit-base-patch16-224 85798656 768 224 vit
facebook/deit-small-patch16-224 21665664 384 224 vit
facebook/dino-vitb16 85798656 768 224 vit
facebook/dino-vits16 21665664 384 224 vit
facebook/dinov2-base 86580480 768 224 vit
facebook/dinov2-large 304368640 1024 224 vit
facebook/dinov2-small 22056576 384 224 vit
facebook/dinov2-with-registers-base 86583552 768 224 vit
facebook/dinov3-vitb16-pretrain-lvd1689m 85660416 768 224 vit
facebook/dinov3-vitl16-pretrain-lvd1689m 303129600 1024 224 vit
facebook/dinov3-vits16-pretrain-lvd1689m 21596544 384 224 vit
facebook/ijepa_vith14_1k 630762240 1280 224 mean
facebook/metaclip-b32-400m 87456000 768 224 dual
facebook/vit-mae-base 85798656 768 224 vit
google/siglip-base-patch16-224 92884224 768 224 dual
google/siglip-so400m-patch14-384 428225600 1152 384 dual
google/siglip2-base-patch16-224 92884224 768 224 dual
google/siglip2-so400m-patch14-384 428225600 1152 384 dual
google/vit-base-patch16-224 85798656 768 224 vit
google/vit-base-patch16-224-in21k 85798656 768 224 vit
google/vit-huge-patch14-224-in21k 630764800 1280 224 vit
google/vit-large-patch16-224-in21k 303301632 1024 224 vit
microsoft/beit-base-patch16-224-pt22k-ft22k 85761984 768 224 beit
microsoft/resnet-50 23508032 2048 224 map
microsoft/swin-base-patch4-window7-224 86743224 1024 224 mean
microsoft/swin-tiny-patch4-window7-224 27519354 768 224 mean
openai/clip-vit-base-patch16 85799424 768 224 dual
openai/clip-vit-base-patch32 87456000 768 224 dual
openai/clip-vit-large-patch14 303179776 1024 224 dual
"""


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return the backbones of torchvision and the well-known ones of transformers, in the order of their names."""
    found = []
    for library, table in (("torchvision", TORCHVISION), ("transformers", TRANSFORMERS)):
        for line in table.strip().splitlines():
            name, parameters, width, side, kind = line.split()
            found.append(
                KnownModel(name, library, int(parameters), int(width), int(side), POOLINGS[kind], kind == "dual")
            )
    return tuple(found)
