"""Which preprocessing belongs to the weights of a Hugging Face directory, and what is said where none is recorded."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.backbones.families import make
from transferkit import backbones
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing

FIELDS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}


@pytest.mark.parametrize("family", ["vit", "dinov2", "convnext"])
def test_a_directory_without_a_preprocessor_is_refused_unless_told(tmp_path: Path, family: str) -> None:
    """As ``model.save_pretrained`` leaves it; a guess would give other embeddings without a word."""
    plain = make(family)
    plain.save_pretrained(tmp_path)
    size = plain.config.image_size
    weights = str(tmp_path / "model.safetensors")
    for source in ("DEFAULT", weights):
        for given in (None, {}, {"image_size": size}, FIELDS):
            with pytest.raises(UserError, match=r"no preprocessor_config\.json.*`preprocessing=") as caught:
                backbones.build(str(tmp_path), source, preprocessing=given)
            assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        told = backbones.build(str(tmp_path), source, preprocessing=FIELDS | {"image_size": size})
        oracle = Preprocessing(
            (size, size), None, "bicubic", *map(tuple, (FIELDS["mean"], FIELDS["std"])), "transformers"
        )
        assert told.preprocessing == oracle
        whole = backbones.build(str(tmp_path), source, preprocessing=FIELDS | {"resize": 2 * size, "crop": size})
        assert (whole.preprocessing.resize, whole.preprocessing.crop) == (2 * size, (size, size))
    assert backbones.build(str(tmp_path), "none").preprocessing.image_size == (size, size)


def test_fields_that_make_no_sense_where_nothing_else_is_known(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    for given, message in (
        (FIELDS | {"image_size": 32, "meen": 1}, "`preprocessing` has no field 'meen'; it takes image_size"),
        (FIELDS | {"resize": 40}, "crop: needed with resize 40"),
        (FIELDS | {"image_size": 32, "std": [0, 1, 1]}, "std: .* must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            backbones.build(str(tmp_path), preprocessing=given)


def test_given_fields_take_the_place_of_a_file_that_cannot_be_honored(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "OwlImageProcessor"}')
    with pytest.raises(UserError, match="image_processor_type 'OwlImageProcessor' cannot be honored"):
        backbones.build(str(tmp_path))
    told = backbones.build(str(tmp_path), preprocessing=FIELDS | {"image_size": 32})
    assert told.preprocessing.mean == tuple(FIELDS["mean"])


def test_a_processor_config_counts_as_well(tmp_path: Path) -> None:
    """What a processor of images and texts saves: the image processor's fields inside of it."""
    make("vit").save_pretrained(tmp_path)
    theirs = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    nested = {"processor_class": "CLIPProcessor", "image_processor": json.loads(theirs.to_json_string())}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert backbones.build(str(tmp_path)).preprocessing.mean == (0.1, 0.2, 0.3)


def test_the_pretrained_cfg_of_timms_weights(tmp_path: Path) -> None:
    plain = make("vit")
    plain.config = copy.deepcopy(plain.config)  # the families' own
    plain.config.pretrained_cfg = {"input_size": [3, 32, 32], "crop_pct": 0.8, "mean": [0.1] * 3, "std": [0.2] * 3}
    plain.save_pretrained(tmp_path)
    scheme = backbones.build(str(tmp_path)).preprocessing
    assert (scheme.resize, scheme.crop, scheme.interpolation) == (40, (32, 32), "bicubic")
    assert (scheme.mean, scheme.std) == ((0.1,) * 3, (0.2,) * 3)


def test_weights_of_a_file_for_a_model_of_the_hub_need_its_preprocessor(filled_cache: Path) -> None:
    (filled_cache / "preprocessor_config.json").unlink()
    file = str(filled_cache / "model.safetensors")
    with pytest.raises(UserError, match=r"someone/tiny-vit \(preprocessor_config\.json\): not in the local cache"):
        backbones.build("someone/tiny-vit", file)
    for source in (file, "DEFAULT"):
        told = backbones.build("someone/tiny-vit", source, preprocessing=FIELDS | {"image_size": 32})
        assert told.preprocessing.std == tuple(FIELDS["std"])


@pytest.mark.parametrize("given", [{}, {"mean": [0] * 3, "std": [1] * 3}, {"image_size": 32, "mean": [0] * 3}])
def test_fields_alone_must_say_size_mean_and_std(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"image_size .or resize and crop., mean and std"):
        Preprocessing.from_fields(given)
