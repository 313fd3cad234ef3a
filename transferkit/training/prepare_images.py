"""What comes before the first batch: all images run once through what is frozen, or are checked."""

import logging
import math
import shutil

from transferkit.backbones.cut import Cut, find_cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.embed import fill_features
from transferkit.embed.feature_cache import cache_limit, cache_root
from transferkit.extractor.frozen_stages import FrozenStages
from transferkit.runtime.free_memory import available_memory
from transferkit.runtime.ranks import joined
from transferkit.training.network import TransferNetwork

log = logging.getLogger(__name__)

OF_CACHE = 4  # an entry takes at most this part of the cache, as a table of embeddings does
OF_DISK = 3  # times the size, since shards are written first, then joined
OF_MEMORY = 4  # times the size, since a table is read, then put in order


def prepare_images(network: TransferNetwork, data: ImageDataModule, stage: str) -> None:
    """Run all images once through what is frozen, or check that they can be read.

    Args:
        network: connected with the data.
        data: of its Trainer.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: images that cannot be read.
    """
    own = {"test": (data.test_split,), "predict": ("predict",), "validate": ("val",)}
    splits = own.get(stage, ("train", "val"))
    precision, device = network.trainer.precision, network.trainer.strategy.root_device
    # cached embeddings are float32: the head of a fit is solved for on them, but evaluated in the precision given
    cached = data.cache == "auto" and precision == "32-true"
    fixed = network.regime == "frozen" or not network.predicting.is_usual  # an engine embeds, and does not train
    repeats = data.is_still and network.trainer.max_epochs != 1  # images pass the frozen stages more than once
    network.cut = None
    if fixed and (data.caches_features if stage == "fit" else cached):
        extractor = network.as_extractor().to(device)
        network.predicting = network.predicting.chosen(extractor, data.tables[splits[0]])
        fill_features(extractor, data, splits)
        return
    if network.predicting.is_wanted:
        log.warning("PyTorch runs the network: `engine` needs cached float32 embeddings, without `cache=off`")
    if stage == "fit" and cached and network.regime == "partial" and repeats:
        extractor = network.as_extractor().to(device)
        cut = find_cut(extractor.backbone, network.first_trainable)
        if cut and fits(cut, sum(len(data.tables[name]) for name in splits), network.trainer.world_size):
            fill_features(extractor, data, splits, FrozenStages(extractor.backbone, extractor.preprocessing, cut))
            network.cut = cut
            return
    data.check_images(splits)


def fits(cut: Cut, images: int, processes: int) -> bool:
    """Return whether there is room for what enters the stage after a cut; if not, one line says so.

    Args:
        cut: the place in the network.
        images: their number.
        processes: those of the fit, each of which keeps all of it in memory.
    """
    size = 4 * math.prod(cut.shape) * images
    place = next(folder for folder in (cache_root(), *cache_root().parents) if folder.is_dir())
    room = {
        "a quarter of the feature cache (TRANSFERKIT_CACHE_LIMIT)": cache_limit() / OF_CACHE,
        "a third of the free space of its disk": shutil.disk_usage(place).free / OF_DISK,
        "a quarter of the free memory": available_memory() / OF_MEMORY / processes,
    }
    with joined() as ranks:
        name, least = ranks.from_first(lambda: min(room.items(), key=lambda one: one[1]))
    if size > least:
        log.warning(
            "the frozen stages run in each epoch: what they give for %d images takes %.2g GB, more than %s, %.2g GB",
            *(images, size / 1e9, name, least / 1e9),
        )
    return size <= least
