"""Decoding: every file of the corpus gives its pixels or its reason, whatever happens around it."""

import gc
import os
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from tests import image_corpus
from tests.image_corpus import Case, encode, oriented, photo
from transferkit.images import decoding, rgb
from transferkit.images.decoding import ImageError, decode, read_image

GOOD, BROKEN = image_corpus.good(), image_corpus.broken()


def outcome(data: bytes) -> np.ndarray | str:
    """Pixels (H, W, 3), or the reason of the refusal."""
    try:
        return decode(data).movedim(0, -1).numpy()
    except ImageError as error:
        return str(error)


def assert_expected(case: Case) -> None:
    result = outcome(case.data)
    if case.pixels is None:
        assert isinstance(result, str)
        assert case.reason in result
    else:
        np.testing.assert_array_equal(result, case.pixels, err_msg=case.name)


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    names = [case.name for case in image_corpus.corpus()]
    assert len(set(names)) == len(names)
    assert min(len(GOOD), len(names) - 40, len(BROKEN)) >= 30


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_images_load_as_their_pixels(case: Case) -> None:
    pixels = decode(case.data)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert_expected(case)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_broken_images_are_refused_with_their_reason(case: Case) -> None:
    with pytest.raises(ImageError) as refusal:
        decode(case.data)
    reason = str(refusal.value)
    assert case.reason in reason
    assert "\n" not in reason
    assert len(reason) < 80


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in image_corpus.corpus():
            assert_expected(case)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_equal_torchvisions_decoder(orientation: int, mode: str) -> None:
    pixels = photo(75, 101) if mode == "RGB" else photo(75, 101)[..., 0]
    data = oriented(pixels, "JPEG", orientation, quality=90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its decoders leave torchvision, ours do not use them
        expected = decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8),
            ImageReadMode.RGB,
            apply_exif_orientation=True,
        )
    assert torch.equal(decode(data), expected)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ],
    ids=str,
)
def test_no_file_without_a_part_of_its_picture_is_accepted(format: str, options: dict[str, bool]) -> None:
    data = encode(photo(13, 18), format, **options)
    whole = outcome(data)
    assert not isinstance(whole, str)
    accepted = [length for length in range(len(data)) if not isinstance(outcome(data[:length]), str)]
    # A GIF's trailer, and what fills up the last row of a BMP to four bytes, are no part of the picture.
    spare = {"GIF": 1, "BMP": -3 * 18 % 4}.get(format, 0)
    assert accepted == [*range(len(data) - spare, len(data))]
    assert all(np.array_equal(outcome(data[:length]), whole) for length in accepted)


def test_only_image_errors_leave_whatever_the_bytes() -> None:
    rng = random.Random(0)
    seeds = [case.data for case in image_corpus.corpus() if 0 < len(case.data) < 20_000]
    for _ in range(600):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            other, cut = rng.choice(seeds), rng.randrange(len(data))
            data[cut:] = other[rng.randrange(len(other)) :]
        result = outcome(bytes(data))
        assert isinstance(result, str) or (result.ndim == 3 and result.dtype == np.uint8)


def test_large_pictures_are_converted_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rgb, "BAND_PIXELS", 150)
    for case in GOOD:
        assert_expected(case)


def test_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(43, 61), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 43 * 61)
    assert decode(data).shape == (3, 43, 61)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 43 * 61 - 1)
    with pytest.raises(ImageError, match="61 x 43 pixels, more than the limit"):
        decode(data)


def test_bombs_are_refused_before_their_pixels_are_made() -> None:
    started = time.thread_time()
    for case in BROKEN:
        if "bomb" in case.name or "scans" in case.name:
            outcome(case.data)
    assert time.thread_time() - started < 0.5


def test_threads_agree_and_leave_the_warning_filters_alone() -> None:
    cases = image_corpus.corpus()
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(assert_expected, cases * 3))
    assert list(warnings.filters) == filters


def test_a_process_forked_while_threads_decode_can_decode() -> None:
    data = encode(photo(43, 61), "TIFF")
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(lambda: [decode(data) for _ in range(300)]) for _ in range(2)]
        for _ in range(5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
                child = os.fork()
            if child == 0:
                os._exit(0 if decode(data).shape == (3, 43, 61) else 1)
            assert exit_status(child, seconds=20) == 0
        for work in busy:
            work.result()


def exit_status(child: int, seconds: float) -> int:
    """The exit status of a child, which is killed when its time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("kind", [str, Path])
def test_files_are_read(kind: type, tmp_path: Path) -> None:
    case = GOOD[0]
    image_corpus.write(tmp_path, [case])
    assert torch.equal(read_image(kind(tmp_path / case.name)), decode(case.data))


def test_files_that_cannot_be_read_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(100))
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 99)
    for name, reason in {
        "absent.jpg": "no such file or directory",
        "": "not a regular file",
        "pipe.jpg": "not a regular file",
        "loop.jpg": "too many levels of symbolic links",
        "large.jpg": "file of 100 bytes, more than the limit of 99",
        "n" * 300: "file name too long",
        "a\0b.jpg": "impossible file name",
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)


def test_too_little_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_rgb", fails)
    with pytest.raises(ImageError, match="cannot allocate memory"):
        decode(GOOD[0].data)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_headers_say_what_decoding_gives(case: Case) -> None:
    assert case.pixels is not None
    header = decoding.inspect(case.data)
    height, width = case.pixels.shape[:2]
    lies = 5 <= header.orientation <= 8 and header.format != "TIFF"
    assert header.size == ((height, width) if lies else (width, height))
    assert header.frames == (2 if "animated" in case.name or case.name in ("pages.tif", "two-pictures.mpo") else 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked.jpg").write_bytes(GOOD[0].data)
    (tmp_path / "locked.jpg").chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read_image(tmp_path / "locked.jpg")


@pytest.mark.parametrize("size", [(1, 1), (23, 37), (1500, 3000)])
def test_pixels_that_pillow_keeps_in_one_piece_or_in_several(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = rgb.in_place(Image.fromarray(noise))  # the picture itself is gone
    gc.collect()
    np.testing.assert_array_equal(pixels, noise)
