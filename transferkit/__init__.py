"""Transfer learning on images: train an extractor, measure its embeddings, hand it over."""

__version__ = "0.1.0"
