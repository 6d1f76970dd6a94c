"""A folder of real photographs with all kinds of trouble planted in it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sample_images import mosaics, sample_images


def troubled_folder(folder: Path, count: int = 150) -> dict[str, list[str]]:
    """Photographs of the sample, 128 px, and what is wrong with some: {kind of trouble: names}."""
    folder.mkdir(parents=True)
    for i, pixels in enumerate(mosaics(count).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"good-{i:03}.jpg", quality=95)
    photo = Image.open(folder / "good-000.jpg")
    other = Image.open(folder / "good-007.jpg")

    ImageOps.grayscale(photo.rotate(90)).save(folder / "grey.png")
    ImageOps.grayscale(other.rotate(90)).convert("RGB").save(folder / "grey-in-rgb.png")
    deep = np.asarray(ImageOps.grayscale(photo.rotate(180))).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    photo.rotate(270).convert("RGBA").save(folder / "transparent.png")
    other.rotate(180).convert("CMYK").save(folder / "cmyk.jpg")

    (folder / "copy.jpg").write_bytes((folder / "good-003.jpg").read_bytes())
    Image.open(folder / "good-004.jpg").save(folder / "quality.jpg", quality=60)
    Image.open(folder / "good-005.jpg").resize((96, 96)).save(folder / "smaller.jpg", quality=95)

    Image.fromarray(sample_images(1)[0].permute(1, 2, 0).numpy()[:20, :20]).save(
        folder / "tiny.png"
    )
    photo.resize((1280, 64)).save(folder / "long.jpg")
    whole = (folder / "good-008.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "notes.txt").write_text("where they were taken")
    (folder / "Thumbs.db").write_bytes(b"\0" * 10)
    return {
        "unreadable": ["cut.jpg", "empty.jpg", "page.jpg"],
        "copies": ["copy.jpg", "good-003.jpg"],
        "near": ["quality.jpg", "smaller.jpg"],
    }
