"""What a media file says about its origin."""

import json

import numpy as np
import pytest
from credentials import sign
from PIL import Image

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.origin import read_credentials, read_origin
from deepfake_nb.study.files import InputError

CAMERA = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same noise as an image and as a video, without credentials."""
    folder = tmp_path_factory.mktemp("plain")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    write_video(folder / "a.mp4", [noise] * 3, 25)
    return folder


@pytest.mark.parametrize("name, kind", [("a.jpg", "image/jpeg"), ("a.mp4", "video/mp4")])
def test_a_signature_is_checked_against_the_file_and_the_list(plain, tmp_path, name, kind):
    root = sign(plain / name, tmp_path / name, kind)
    found = read_credentials(tmp_path / name)
    assert (found.state, found.signer, found.made_with) == (
        "signed",
        "Example Camera Maker",
        "Example camera 1",
    )
    assert found.actions == ("created",) and found.generated
    assert read_credentials(tmp_path / name, root).state == "trusted"
    other = sign(plain / name, tmp_path / f"other-{name}", kind)
    assert read_credentials(tmp_path / name, other).state == "signed"


def test_a_changed_file_is_altered(plain, tmp_path):
    sign(plain / "a.jpg", tmp_path / "a.jpg", "image/jpeg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[-40] ^= 0x55  # among the pixels
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_credentials(tmp_path / "a.jpg").state == "altered"


def test_a_camera_does_not_say_that_a_model_made_it(plain, tmp_path):
    sign(plain / "a.jpg", tmp_path / "a.jpg", "image/jpeg", CAMERA)
    assert not read_credentials(tmp_path / "a.jpg").generated


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4"])
def test_absence_says_nothing(plain, name):
    origin = read_origin(plain / name).as_dict()
    assert origin["content_credentials"]["state"] == "absent"
    assert "says nothing" in origin["content_credentials"]["meaning"]
    assert all(fact["meaning"] or fact["name"] == "container" for fact in origin["metadata"])
    assert json.loads(json.dumps(origin)) == origin


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no image", b"\x00" * 99])
@pytest.mark.parametrize("name", ["x.jpg", "x.mp4", "x.png", "x.heic", "x.xyz"])
def test_a_damaged_file_says_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_origin(tmp_path / name).credentials.state in ("absent", "unreadable")


def test_where_there_is_no_file_it_says_so(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_origin(tmp_path / "nothing.jpg")
