"""Small copies of the layouts of data sets, videos as other tools write them, and quick detectors."""

import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from deepfake_nb.evaluation.calibration import fit_media_calibration
from deepfake_nb.media.faces import Detections

FIVE_POINTS = np.float32([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])  # of a box of side 1


class WhiteSquares:
    """A face detector that takes every patch that is not black for a face; quick, and sure of itself."""

    working_size = 4096

    def detect(self, image):
        count, _, stats, _ = cv2.connectedComponentsWithStats(np.uint8(image.min(2) > 60))
        boxes = np.float32([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:count]]).reshape(-1, 4)
        landmarks = boxes[:, None, :2] + FIVE_POINTS * (boxes[:, None, 2:] - boxes[:, None, :2])
        return Detections(boxes, np.full(len(boxes), 0.9, np.float32), landmarks)


class Everywhere:
    """A face detector for which every image is one face."""

    working_size = 64

    def detect(self, image):
        side = np.float32(image.shape[1::-1])
        return Detections(np.float32([[0, 0, *side]]), np.float32([0.9]), FIVE_POINTS[None] * side)


class Light(torch.nn.Module):
    """A network for which fake is what is bright."""

    def forward(self, faces):
        return 10 * (faces.flatten(1).mean(1) - 0.5)


def made_calibration(*detectors, kind="picture", genuine_to=0.495, fakes_from=0.505, **options):
    """A calibration on made scores of 99 genuine files, evenly up to one number, and of 99 fakes, evenly from another on."""
    scores = [*np.linspace(0.01, genuine_to, 99), *np.linspace(fakes_from, 0.99, 99)]
    rows = [(str(number), int(number >= 99), score, name, kind, str(number))
            for name in detectors for number, score in enumerate(scores)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["media_id", "label", "score", "detector", "kind", "person"])
    return fit_media_calibration(table, about="made numbers", draws=3, **options)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(height=48, width=64):
    """Red upper left, green upper right, blue lower left, white lower right."""
    image = np.full((height, width, 3), WHITE, np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2] = BLUE
    return image


def encode(path, images, *, codec="libx264", pixel_format="yuv420p", ticks=None, clock=1000, rotation=None, mirrored=False,
           source_format="rgb24", rate=25, container_options=None, options=None, aspect=None, **colours):  # fmt: skip
    """Write a file as somebody else's tool would."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        context, shape = stream.codec_context, None
        for place, image in enumerate(images):
            if shape is None:
                shape = image.shape
                context.height, context.width, context.pix_fmt = *shape[:2], pixel_format
                for name, value in colours.items():
                    setattr(context, name, value)
                if aspect:
                    context.sample_aspect_ratio = aspect
                if ticks is not None:
                    context.time_base = Fraction(1, clock)
                if rotation or mirrored:
                    stream.set_display_rotation(rotation or 0, hflip=mirrored)
            frame = av.VideoFrame.from_ndarray(image, source_format)
            if colours.get("colorspace"):
                frame = frame.reformat(format=pixel_format, dst_colorspace=colours["colorspace"],
                                       dst_color_range=colours.get("color_range", 1))  # fmt: skip
            frame.pts, frame.time_base = place, Fraction(1, rate)
            if ticks is not None:
                frame.pts, frame.time_base = ticks[place], Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def place(root, names, content=b""):
    """Make the files `names` below `root`, each with `content` (bytes, or a file to copy)."""
    data = content if isinstance(content, bytes) else Path(content).read_bytes()
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Path(root)


def ffpp(root, content=b"", compressions=("c23",), pairs=(("004", "982"), ("071", "054"))):
    """FaceForensics++ with both people of each pair, swapped both ways by two methods, and two actors."""
    names = []
    for compression in compressions:
        for a, b in pairs:
            names += [f"original_sequences/youtube/{compression}/videos/{person}.mp4" for person in (a, b)]
            for method in ("Deepfakes", "FaceSwap"):
                folder = f"manipulated_sequences/{method}/{compression}/videos"
                names += [f"{folder}/{a}_{b}.mp4", f"{folder}/{b}_{a}.mp4"]
        names.append(f"manipulated_sequences/Deepfakes/masks/videos/{pairs[0][0]}_{pairs[0][1]}.mp4")
        names.append(f"original_sequences/actors/{compression}/videos/01__kitchen_pan.mp4")
        folder = f"manipulated_sequences/DeepFakeDetection/{compression}/videos"
        names.append(f"{folder}/01_02__kitchen_pan__J5BXWVCN.mp4")
    return place(root, names, content)


def ffpp_splits(root, train=(("004", "982"),), val=(), test=(("071", "054"),)):
    """The official split files: lists of pairs of sequence numbers."""
    for name, pairs in {"train": train, "val": val, "test": test}.items():
        (Path(root) / f"{name}.json").write_text(json.dumps([list(pair) for pair in pairs]))


def celeb_df(root, content=b""):
    """Celeb-DF with a test list whose 1 is real, one absent file and one file with a wrong 1."""
    names = ["Celeb-real/id0_0000.mp4", "Celeb-real/id1_0000.mp4", "YouTube-real/00001.mp4"]
    names += ["Celeb-synthesis/id0_id1_0000.mp4", "Celeb-synthesis/id1_id0_0000.mp4"]
    place(root, names, content)
    lines = [
        "1 YouTube-real/00001.mp4",
        "0 Celeb-synthesis/id0_id1_0000.mp4",
        "1 Celeb-synthesis/id1_id0_0000.mp4",
    ]
    (Path(root) / "List_of_testing_videos.txt").write_text(
        "\n".join([*lines, "0 Celeb-synthesis/id7_id8_0000.mp4"])
    )
    return Path(root)


def dfd(root, content=b"", suffix=".mp4"):
    """DeepFakeDetection as its copy on Kaggle has it: three actors, swapped in a circle."""
    names = [f"DFD_original sequences/{actor}__kitchen_pan{suffix}" for actor in ("01", "02", "03")]
    fakes = "DFD_manipulated_sequences/DFD_manipulated_sequences"
    pairs = ("01_02", "02_03", "03_01")
    return place(
        root, [*names, *(f"{fakes}/{pair}__kitchen_pan__J5BXWVCN{suffix}" for pair in pairs)], content
    )


CELEB_DF_PP_METHODS = (
    "FaceSwap/Celeb-DF-v2",
    "FaceSwap/SimSwap",
    "FaceReenact/LivePortrait",
    "TalkingFace/SadTalker",
)


def celeb_df_pp(root, content=b"", suffix=".mp4", coding="utf-8", name="List_of_testing_videos.txt"):
    """Celeb-DF++ with the same two fakes by four methods, and a test list of one genuine video and one method."""
    names = [f"Celeb-real/id{person}_0000{suffix}" for person in range(3)] + [f"YouTube-real/00001{suffix}"]
    for method in CELEB_DF_PP_METHODS:
        names += [f"Celeb-synthesis/{method}/{fake}_0000{suffix}" for fake in ("id0_id1", "id1_id2")]
    place(root, names, content)
    lines = ["1 Celeb-real/id2_0000.mp4", "0 Celeb-synthesis/FaceSwap/Celeb-DF/id0_id1_0000.mp4"]
    lines += ["0 Celeb-synthesis/FaceReenact/LivePortrait/id0_id1_0000.mp4"]
    (Path(root) / name).write_bytes("\r\n".join(lines).encode(coding))
    return Path(root)


def df40(root, content=b""):
    """DF40 with a training and a test part, made from both sets, a method with media of its own, and genuine frames."""
    names = [
        f"DF40_train/{method}/frames/001_870/{frame}.png"
        for method in ("simswap", "wav2lip")
        for frame in ("000", "012")
    ]
    names += ["DF40/simswap/ff/frames/004_982/000.png", "DF40/simswap/cdf/frames/id0_id1_0003/000.png"]
    names += ["DF40/StyleGAN2/ff/001/seed0188.png", "DF40/e4e/cdf/Celeb-real/inversions/id5_0003_001.jpg"]
    names += ["DF40/heygen/fake/7/000.png", "DF40/heygen/real/7/000.png", "DF40/starganv2/real/1007.jpg"]
    names += ["FaceForensics++/original_sequences/youtube/c23/frames/870/000.png"]
    names += [
        "Celeb-DF-v2/Celeb-real/frames/id0_0003/000.png",
        "Celeb-DF-v2/YouTube-real/frames/00170/000.png",
    ]
    return place(root, names, content)


def wild_deepfake(root, content=b"", gap="_"):
    """WildDeepfake, unpacked but for one archive: two videos a folder, of two sequences of two faces each."""
    folders = [f"{label}{gap}{split}" for label in ("real", "fake") for split in ("train", "test")]
    names = [f"{folder}/{video}/{folder[:4]}/{sequence}/{frame}.png"
             for folder in folders for video in (1, 2) for sequence in (10, 11) for frame in (0, 1)]  # fmt: skip
    place(root, [f"fake{gap}train/3.tar.gz"])
    return place(root, names, content)


def dfdc(root, content=b"", parts=("dfdc_train_part_0", "dfdc_train_part_1")):
    """DFDC with one real, one fake and one absent file a part, the same file names in every part."""
    for part in parts:
        place(Path(root) / part, ["real.mp4", "fake.mp4"], content)
        entries = {"real.mp4": {"label": "REAL", "split": "train"}}
        entries |= {
            name: {"label": "FAKE", "split": "train", "original": "real.mp4"}
            for name in ("fake.mp4", "no.mp4")
        }
        (Path(root) / part / "metadata.json").write_text(json.dumps(entries))
    return Path(root)


def stills(
    root, content=b"", splits=("Train", "Validation", "Test"), labels=("Fake", "Real"), count=2, suffix=".jpg"
):
    """Crops below folders of splits and labels; the names hold nothing."""
    names = [
        f"{s}/{label}/{label.lower()}_{i}{suffix}" for s in splits for label in labels for i in range(count)
    ]
    return place(root, names, content)


def recordings(root, rows, content=b""):
    """Recordings described by a CSV; `rows` are (path, label, identity, target_id)."""
    place(root, [row[0] for row in rows if ".." not in row[0]], content)
    lines = ["path,label,identity,target_id", *(",".join(row) for row in rows)]
    (Path(root) / "recordings.csv").write_text("\n".join(lines), encoding="utf-8")
    return Path(root)


def noise(folder, count, size=64):
    """Pictures of one kind, to learn from: noise, darker in a folder `real` than in another."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*"/".join(folder.parts[-3:]).encode(), size])
    level = 90 if folder.name == "real" else 160
    for number in range(count):
        picture = np.clip(rng.normal(level, 25, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{folder.parent.name}_{number:02d}.jpg")


def talking_heads(folder, frames=12, side=128):
    """Four short videos and two images of two rendered people, and of the same two in a mirror."""
    from deepfake_nb.media.video import write_video
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_video

    for person in range(2):
        film = render_video(random_identity(person), "studio", frames, size=side, seed=person).images
        write_video(folder / f"{person}.mp4", film, 25, crf=18)
        write_video(folder / f"{person + 2}.mp4", film[:, :, ::-1], 25, crf=18)
        Image.fromarray(film[0]).save(folder / f"{person}.png")
    return folder
