"""A backbone with its preprocessing: what is trained, measured and handed over."""

from transferkit.extractor.extractor import Extractor

__all__ = ["Extractor"]
