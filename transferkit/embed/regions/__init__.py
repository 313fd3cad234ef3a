"""Regions: boxes in images, with one embedding per box."""

from transferkit.embed.regions.boxes import Box, match_boxes, read_boxes
from transferkit.embed.regions.output import Regions, check_regions_place, embed_regions, save_regions

__all__ = ["Box", "Regions", "check_regions_place", "embed_regions", "match_boxes", "read_boxes", "save_regions"]
