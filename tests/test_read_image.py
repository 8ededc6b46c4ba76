"""Pictures of every kind: orientation, colour modes, depth, transparency, size limits, damage."""

import numpy as np
import pillow_heif
import pytest
from layouts import quarters
from PIL import Image

from deepfake_nb.media.video import UnreadableMedia, read_image

RNG = np.random.default_rng(0)


STORED = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](quarters(40, 60)))
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (40, 60, 3)
    assert np.abs(read.astype(int) - quarters(40, 60)).mean() < 3


def test_damaged_exif_counts_as_none(tmp_path):
    Image.fromarray(quarters(40, 60)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "CMYK", "YCbCr", "LAB", "LA", "PA", "RGBA", "RGBX"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(quarters(40, 60))
    if mode in ("L", "LA", "1"):
        image = image.convert("L")
    if mode in ("P", "PA"):
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    path = tmp_path / ("a.png" if mode in ("L", "1", "P", "RGB", "LA", "RGBA") else "a.tif")
    stored = image.convert(mode)
    stored.save(path)
    read = read_image(path)
    assert read.shape == (40, 60, 3) and read.dtype == np.uint8 and read.flags.c_contiguous
    expected = np.asarray((stored if mode == "1" else image).convert("RGB"))
    assert np.abs(read.astype(int) - expected).mean() < (8 if mode == "LAB" else 2)


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(quarters(40, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - quarters(40, 60)).mean() < 4


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None], 4, 0)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[0, :, 1], np.arange(256))


def test_float_pictures(tmp_path):
    Image.fromarray(np.full((3, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert np.all(read_image(tmp_path / "a.tif") == 128)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "grey.png", "palette.png", "a.gif"])
def test_transparency_is_laid_on_mid_grey(tmp_path, name):
    image = np.zeros((16, 32, 4), np.uint8)
    image[:, :16] = 250, 250, 250, 255
    picture = Image.fromarray(image)
    picture = picture.convert("LA") if name == "grey.png" else picture
    picture = picture.convert("P") if name == "palette.png" else picture
    options = {"transparency": picture.getpixel((20, 5))} if name == "palette.png" else {}
    picture.save(tmp_path / name, **options, **({"lossless": True} if name == "a.webp" else {}))
    read = read_image(tmp_path / name).astype(int)
    assert np.abs(read[:, :16] - 250).max() <= 5 and np.all(read[:, 16:] == 128)


def test_half_transparent(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[192, 64, 64]]]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    first, second = Image.new("RGB", (20, 10), (200, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 200))
    first.save(tmp_path / name, save_all=True, append_images=[second], duration=100)
    read = read_image(tmp_path / name)
    assert read.shape == (10, 20, 3) and read[0, 0, 0] > 180 and read[0, 0, 2] < 30


def test_one_pixel_and_8k(tmp_path):
    Image.new("L", (1, 1), 77).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").tolist() == [[[77, 77, 77]]]
    Image.new("RGB", (7680, 4320), (1, 2, 3)).save(tmp_path / "8k.jpg")
    assert read_image(tmp_path / "8k.jpg").shape == (4320, 7680, 3)


def test_a_decompression_bomb_is_a_sentence(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UnreadableMedia, match="has more than 20,000 pixels"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("error")
def test_a_large_picture_below_the_limit_gives_no_warning(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80_000)
    assert read_image(tmp_path / "large.png").shape == (300, 300, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
def test_a_cut_picture_is_refused(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(RNG.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UnreadableMedia, match=name) as caught:
            read_image(path)
        assert str(caught.value).endswith(".")


def test_noise_in_pictures_never_escapes_as_another_error(tmp_path):
    for ending in ("jpg", "png", "webp", "tif", "gif", "bmp"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            hurt = content.copy()
            hurt[RNG.integers(0, len(hurt), 8)] = RNG.integers(0, 255, 8)
            path.write_bytes(hurt.tobytes())
            try:
                assert read_image(path).ndim == 3
            except UnreadableMedia as error:
                assert repr(str(path)) in str(error)


BAD_PICTURES = {
    "empty.jpg": (b"", "is empty"),
    "text.png": (b"this is no picture", "Save it as JPEG or PNG"),
    "phone.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(100), "Save it as JPEG or PNG"),
    "ünï cødé.jpg": (b"\xff\xd8\xff\xe0", "ünï cødé.jpg"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_no_picture_is_refused(tmp_path, name):
    content, says = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableMedia, match=says):
        read_image(tmp_path / name)


def test_a_phones_heic_is_read_and_a_cut_one_refused(tmp_path):
    pillow_heif.register_heif_opener()
    path, wanted = tmp_path / "IMG_0001.HEIC", quarters(64, 96)
    Image.fromarray(wanted).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - wanted).mean() < 4
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableMedia, match=r"IMG_0001\.HEIC.* is cut or damaged"):
        read_image(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(UnreadableMedia, match="There is no file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableMedia, match="is a folder"):
        read_image(tmp_path)


def test_names_with_spaces_and_other_scripts(tmp_path):
    path = tmp_path / "mein bild – 写真.png"
    Image.fromarray(quarters(40, 60)).save(path)
    assert np.array_equal(read_image(str(path)), quarters(40, 60))
    assert read_image(path).flags.writeable


def test_real_pictures(shared_data):
    paths = (
        sorted(shared_data.glob("synthetic_stills/test/*/*.jpg"))[:10]
        + sorted(shared_data.glob("lfw/**/*.jpg"))[:10]
    )
    assert paths and all(read_image(path).min() < read_image(path).max() for path in paths)
