"""`mixco embed` in several processes, as torchrun starts them, stopped and resumed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_folders import random_run
from sample_images import unpack_sample

import mixco
from mixco.embeddings.vectors import read_vectors
from mixco.runtime.locks import locked

pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.timeout(900)]

# It saves after each batch. With STOP=1 process 1 gets SIGTERM after its first one, when shard 0 is
# finished; so process 0 does not wait for it.
STOPPING = """
import os, signal, time
from pathlib import Path
from mixco.cli import main
from mixco.embeddings import commands
from mixco.embeddings.writing import embed_to_file

def embedding(path, *rest, on_progress, **options):
    def seen(done, total):
        print(f"process {os.environ['RANK']} has {done} of {total}", flush=True)
        on_progress(done, total)
        if os.environ["STOP"] == os.environ["RANK"]:
            while not Path("vectors-00000-of-00002.safetensors").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
    return embed_to_file(path, *rest, on_progress=seen, group=512, **options)

commands.embed_to_file = embedding
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ with 1,600 images, in four batches; and run."""
    folder = tmp_path_factory.mktemp("embedding")
    unpack_sample(folder / "sample", train=160, test=0)
    shutil.move(folder / "sample/train", folder / "photos")
    random_run(folder / "run", folder / "photos")
    return folder


def torchrun(
    folder: Path, processes: int, *program: str, stop: str = ""
) -> subprocess.CompletedProcess[str]:
    """Both streams of the processes stand in stdout."""
    settings = "--device cpu --precision float32 --cache cache --workers 0"
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", *program, *settings.split()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "STOP": stop},
        timeout=600,
        check=False,
    )


def assert_as_by_one_process(folder: Path, out: Path, data: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: equal arithmetic
    try:
        whole = mixco.embed(
            folder / "run",
            folder / data if data == "photos" else data,
            out=folder / f"{data}.npz",
            device="cpu",
            precision="float32",
            cache=folder / "cache",
        )
    finally:
        torch.set_num_threads(threads)
    found, expected = read_vectors(out), read_vectors(whole)
    assert found.paths() == expected.paths() and len(found) == 1600
    assert torch.equal(found.vectors, expected.vectors)


def test_three_processes_embed_an_archive_as_one_does(folder: Path) -> None:
    program = ("-m", "mixco", "embed", "run", "sample", "--out", "sample.safetensors")
    done = torchrun(folder, 3, *program)
    assert done.returncode == 0, done.stdout
    ends = re.findall(r"^sample-0000(\d)-of-00003\.safetensors: the vectors of", done.stdout, re.M)
    assert sorted(ends) == ["0", "1", "2"], "each process says that it is done"
    assert done.stdout.count("done: ") == 1
    assert_as_by_one_process(folder, folder / "sample.safetensors", "sample")


def test_one_that_is_stopped_resumes_while_the_other_is_finished(folder: Path) -> None:
    (folder / "stopping.py").write_text(STOPPING)
    program = ("stopping.py", "embed", "run", "photos", "--out", "vectors.safetensors")
    stopped = torchrun(folder, 2, *program, stop="1")
    assert stopped.returncode != 0
    assert "process 1 has 512 of 576" in stopped.stdout
    first, second = (folder / f"vectors-0000{n}-of-00002.safetensors" for n in (0, 1))
    assert first.exists() and not second.exists()
    before = first.stat().st_mtime_ns
    with pytest.raises(mixco.UserError, match=second.name):
        read_vectors(folder / "vectors.safetensors")

    resumed = torchrun(folder, 2, *program)
    assert resumed.returncode == 0, resumed.stdout
    steps = re.findall(r"process (\d) has (\d+) of", resumed.stdout)
    assert steps == [("1", "576")], "what is saved is not embedded again"
    assert first.stat().st_mtime_ns == before
    assert_as_by_one_process(folder, folder / "vectors.safetensors", "photos")


def test_whichever_process_fails_says_why(folder: Path) -> None:
    part = folder / "v-00001-of-00002.npz.part"
    part.mkdir()
    with locked(part / ".lock"):
        done = torchrun(folder, 2, "-m", "mixco", "embed", "run", "photos", "--out", "v.npz")
    assert done.returncode != 0
    assert "mixco, process 1: v-00001-of-00002.npz: another process" in done.stdout
