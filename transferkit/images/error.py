"""The one exception that decoding raises."""


class ImageError(Exception):
    """An image that cannot be used; the message is one short reason, such as ``truncated JPEG``."""
