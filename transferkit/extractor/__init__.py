"""Extractors: a backbone with its preprocessing, and a head if it has been trained."""

from transferkit.extractor.extractor import Extractor

__all__ = ["Extractor"]
