"""How long a large folder of images takes to be listed: without an index, the first and a later time.

    python benchmarks/listing.py [--files 100000] [--folders 100] [--rounds 3] [--folder FOLDER]

The files are hard links to one small photograph, made below --folder (by default the system's folder
for temporary files) and removed in the end. The system's own cache of the disk is warm: what a cold
disk costs on top is its seeks, about one a folder with an index, far more without.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from mixco.data import file_index as index
from mixco.data.datasets import list_images
from mixco.data.datasets.folders import EXTENSIONS

LINKS = 1000  # to one file; file systems have a limit


def make_files(root: Path, files: int, folders: int) -> None:
    content = list_images("sample", None, "train").read(0)
    made = 0
    for number in range(folders):
        folder = root / f"n{number:08}"
        folder.mkdir(parents=True)
        while made < files * (number + 1) // folders:
            path = folder / f"n{number:08}_{made}.JPEG"
            if made % LINKS == 0:
                path.write_bytes(content)
                original = path
            else:
                path.hardlink_to(original)
            made += 1


def seconds(root: Path, cache: Path | None) -> tuple[float, int]:
    began = time.perf_counter()
    count = len(index.list_files(root, EXTENSIONS, cache))
    return time.perf_counter() - began, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        root = Path(temporary) / "photos"
        make_files(root, arguments.files, arguments.folders)
        time.sleep(index.SETTLED_NS / 1e9)  # younger folders are listed again
        times: dict[str, list[float]] = {"no index": [], "first time": [], "later": []}
        for number in range(arguments.rounds):
            cache = Path(temporary) / f"cache-{number}"
            for what, where in (("no index", None), ("first time", cache), ("later", cache)):
                took, count = seconds(root, where)
                assert count == arguments.files
                times[what].append(took)
        size = next(cache.iterdir()).stat().st_size / 2**20
    for what, all_times in times.items():
        print(
            f"{arguments.files:,} files in {arguments.folders} folders, {what}: "
            f"{statistics.median(all_times):.2f} s ({min(all_times):.2f} to {max(all_times):.2f})"
        )
    print(f"the index takes {size:.1f} MiB")


if __name__ == "__main__":
    main()
