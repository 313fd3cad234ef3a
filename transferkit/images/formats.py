"""Formats of pictures: those that are read, with which package, and the names of those that are not."""

import importlib
import importlib.metadata
import re
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

import PIL
from PIL import features

from transferkit.images.error import ImageError


class Plugin(NamedTuple):
    """A package that adds a format to Pillow.

    Attributes:
        name: display name of the format.
        module: registers the opener when it is imported.
        package: name of the package to install.
    """

    name: str
    module: str
    package: str


# Pillow's name of a format -> the plugin that opens it.
PLUGINS = {
    "HEIF": Plugin("HEIC", "pillow_heif.HeifImagePlugin", "pillow-heif"),
    "JXL": Plugin("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
    "AVIF": Plugin("AVIF", "pillow_avif", "pillow-avif-plugin"),
}

# Extensions of each format that is read, the usual one first. All formats have a signature and are decoded inside
# this process (EPS, for example, would start Ghostscript).
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "JPEG2000": ("jp2", "j2k", "j2c"),
    "AVIF": ("avif",),
    "HEIF": ("heic", "heif", "hif"),
    "JXL": ("jxl",),
}

FORMATS = tuple(name for name in EXTENSIONS if name not in PLUGINS)  # that Pillow itself opens
SUFFIXES = tuple(f".{extension}" for extensions in EXTENSIONS.values() for extension in extensions)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")  # and of RIFF, see below

# Extensions of pictures that are never read: they are reported, not silently ignored.
UNREAD = {
    "camera raw": "3fr arw cr2 cr3 dng erf kdc mrw nef nrw orf pef raf raw rw2 sr2 srw x3f",
    "DICOM": "dcm dicom",
    "ICO": "ico cur",
    "TGA": "tga",
    "Photoshop": "psd psb",
    "OpenEXR or HDR": "exr hdr pfm",
    "JPEG XR": "jxr wdp hdp",
    "other picture": "dds fits icns jls ktx pam pcx qoi ras sgi svs ndpi mrxs xbm xpm",
    "drawing": "svg svgz eps ai wmf emf",
}
UNREAD_KINDS = {extension: kind for kind, extensions in UNREAD.items() for extension in extensions.split()}


# First bytes of pictures that are never opened -> what they are.
UNREAD_SIGNATURES = {
    b"8BPS": "Photoshop",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
    b"P7\n": "PAM",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"icns": "ICNS",
    b"\x01\xda": "SGI",
    b"SIMPLE  =": "FITS",
    b"II\xbc": "JPEG XR",
    b"MM\0\x2b": "big-endian BigTIFF",
    b"\xff\xd8\xff\xf7": "JPEG-LS",
}
PCX = re.compile(rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", re.DOTALL)
# What is found under the name of a picture and is not one -> what it is, and the remedy.
NOT_PICTURES = {
    re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE): "a web page; download the image itself",
    re.compile(rb"version https://git-lfs\.github\.com/spec/"): "a pointer of Git LFS; run git lfs pull",
    re.compile(rb"%PDF"): "a PDF; convert its page to PNG or JPEG",
    re.compile(rb"%!PS"): "PostScript; convert it to PNG or JPEG",
}


def formats_for(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that a file may have; a plugin is imported only when it is needed.

    Raises:
        ImageError: the format is never read, or needs a package that is not installed.
    """
    name = needs_plugin(data)
    if name is None:
        if picture := unread_name(data):
            raise unread(picture)
        if found := next((name for start, name in NOT_PICTURES.items() if start.match(data)), None):
            raise ImageError("not_an_image", f"not an image but {found}")
        return FORMATS
    if name == "AVIF" and features.check("avif"):
        return ("AVIF",)
    plugin = PLUGINS[name]
    try:
        importlib.import_module(plugin.module)
    except ImportError as error:
        missing = f"{plugin.name} needs the package {plugin.package} (pip install {plugin.package})"
        raise ImageError("needs_package", missing) from error
    return (name,)


def missing_plugins() -> dict[str, str | None]:
    """Return format -> the package that reads it, or None if it can be read here; of those that need one."""
    found: dict[str, str | None] = {}
    for name, plugin in PLUGINS.items():
        is_there = find_spec(plugin.module.partition(".")[0]) or (name == "AVIF" and features.check("avif"))
        found[plugin.name] = None if is_there else plugin.package
    return found


def unread(name: str) -> ImageError:
    """Return the error for a picture of a kind that is not read."""
    return ImageError("unsupported_format", f"{name} is not read; convert it to PNG or JPEG")


def needs_plugin(data: bytes) -> str | None:
    r"""Return Pillow's name of a format that Pillow may not open by itself, None for other formats.

    >>> needs_plugin(b"\0\0\0\x18ftypavif\0\0\0\0mif1"), needs_plugin(b"GIF89a")
    ('AVIF', None)
    """
    if data[4:8] == b"ftyp":  # ISO 14496-12, 4.3: the size, the word, then brands of four letters
        brands = data[8 : min(int.from_bytes(data[:4]), 256)]
        # mif1 and msf1 mean only a picture or a sequence; AVIF is then in the list of brands after them.
        if brands[:4] in (b"avif", b"avis") or (brands[:4] in (b"mif1", b"msf1") and b"avi" in brands):
            return "AVIF"
        if brands[:4] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"):
            return "HEIF"
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":  # ISO 18181-2, annex A
        return "JXL"
    return None


def unread_name(data: bytes) -> str | None:
    """Return the name of a picture format that is not read, by its signature; None for other bytes.

    >>> unread_name(b"8BPS"), unread_name(b"GIF89a")
    ('Photoshop', None)
    """
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[:4] in (b"\0\0\1\0", b"\0\0\2\0") and 0 < int.from_bytes(data[4:6], "little") < 256 and data[9:10] == b"\0":
        return "ICO"
    if data[12:16] == b"CgBI" and data.startswith(b"\x89PNG"):  # Apple's own first chunk, and pixels as no PNG has
        return "iPhone-optimized PNG (CgBI)"
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return "TGA"
    if PCX.match(data):
        return "PCX"
    return next((name for start, name in UNREAD_SIGNATURES.items() if data.startswith(start)), None)


def starts_as_image(start: bytes) -> bool:
    """Return whether the first 64 bytes of a file are those of a picture.

    >>> starts_as_image(b"GIF89a"), starts_as_image(b"%PDF-1.7")
    (True, False)
    """
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(SIGNATURES) or is_webp or needs_plugin(start) is not None


def decoders() -> str:
    """Return the versions and rules that the result of decoding depends on, as one text."""
    versions = [f"rules {RULES}", f"Pillow {PIL.__version__}", f"AVIF {features.check('avif')}"]
    for plugin in PLUGINS.values():
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{plugin.package} {importlib.metadata.version(plugin.package)}")
    return ", ".join(versions)


RULES = 4
"""Increase it whenever the result of a file changes: other pixels, refused, or accepted."""
