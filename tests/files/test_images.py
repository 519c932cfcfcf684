"""What an image says of itself in its header; nothing is decoded."""

from collections.abc import Callable
from functools import partial

import pytest

from app.services.files.errors import FileTooLarge, FileUnreadable
from app.services.files.images import image_of
from tests.files import made

IMAGES: dict[str, tuple[str, Callable[[int, int], bytes]]] = {
    "png": ("image/png", made.png),
    "gif": ("image/gif", made.gif),
    "jpeg": ("image/jpeg", made.jpeg),
    "webp VP8X": ("image/webp", partial(made.webp, kind="VP8X")),
    "webp VP8L": ("image/webp", partial(made.webp, kind="VP8L")),
    "webp VP8": ("image/webp", partial(made.webp, kind="VP8")),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_kind_and_size_are_those_of_the_header(kind: str) -> None:
    media_type, make = IMAGES[kind]
    assert image_of(make(640, 48)) == (media_type, 640, 48)


@pytest.mark.parametrize("kind", IMAGES)
def test_image_cut_anywhere_in_its_header_is_unreadable_or_no_image(kind: str) -> None:
    _, make = IMAGES[kind]
    data = make(640, 48)
    seen: set[str] = set()
    for length in range(len(data)):
        try:
            image = image_of(data[:length])
        except FileUnreadable:
            seen.add("unreadable")
        else:
            seen.add("none" if image is None else "image")
            assert image is None or image[1:] == (640, 48)
    assert {"unreadable", "none"} <= seen


@pytest.mark.parametrize(
    ("width", "height"), [(5001, 5000), (2**32 - 1, 2**32 - 1), (1, 25_000_001)]
)
def test_image_of_more_than_25_megapixels_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(FileTooLarge):
        image_of(made.png_header(width, height))


def test_image_of_25_megapixels_is_taken() -> None:
    assert image_of(made.png_header(5000, 5000)) == ("image/png", 5000, 5000)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_image_without_a_pixel_is_unreadable(size: tuple[int, int]) -> None:
    with pytest.raises(FileUnreadable):
        image_of(made.png_header(*size))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000,
        b"\xff\xd8\xff\xe0\x00\x00" + b"\xff\xc0\x00\x0b\x08\x00\x02\x00\x03",
        b"\xff\xd8\xff\xd8" * 50_000,
    ],
    ids=["fill bytes", "empty segments", "segment without length", "starts"],
)
def test_jpeg_made_to_be_searched_for_long_is_unreadable(data: bytes) -> None:
    with pytest.raises(FileUnreadable):
        image_of(data)


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"BM1234", b"RIFF1234WAVE", b"II*\0", b"\x89PNG"])
def test_other_bytes_are_no_image(data: bytes) -> None:
    assert image_of(data) is None
