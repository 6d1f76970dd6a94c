"""Streams as people have them: without their terminal, closed, full, unread, with few letters."""

import csv
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from configs import config_of
from forked import Python, python
from run_folders import ARCH, random_run
from safetensors import safe_open
from sample_images import unpack_sample

import mixco
from mixco.runtime.files import in_line, shown
from mixco.runtime.run_folder import read_confusions, read_metrics, read_results
from mixco.runtime.streams import Answers, Messages, Unread
from mixco.settings.commands import KNNConfig
from mixco.training.checkpoints import checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals and descriptors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "run", photos)


def pretraining(photos: Path, out: Path, epochs: int = 1) -> list[str]:
    return [
        *("-m", "mixco", "pretrain", "--data", str(photos), "--out", str(out), "--size", "32"),
        *("--arch", ARCH, "--stem", "standard", "--epochs", str(epochs), "--batch-size", "16"),
        *("--device", "cpu", "--cache", str(photos.parent / "cache"), "--knn-every", "0"),
    ]


# The terminal.


def in_a_terminal(name: str, *, own: bool, ignored: bool = False) -> None:
    """Begin a session in the terminal; own: it is the session's, which is told when it goes."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR | (0 if own else os.O_NOCTTY))
    for number in range(3):
        os.dup2(terminal, number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)


def until_seen(master: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        assert select.select([master], [], [], 120)[0], seen
        seen += os.read(master, 65536)


@pytest.mark.parametrize(
    ("how", "own", "ignored"),
    [("hung up", True, False), ("nohup", True, True), ("disowned", False, False)],
)
def test_a_run_outlives_its_terminal(
    photos: Path, tmp_path: Path, how: str, own: bool, ignored: bool
) -> None:
    master, slave = pty.openpty()
    before = partial(in_a_terminal, os.ttyname(slave), own=own, ignored=ignored)
    command = pretraining(photos, tmp_path / "run", epochs=400 if how == "hung up" else 12)
    process = Python(*command, before=before)
    try:
        until_seen(master, b"loss")  # a bar, redrawn by a thread of its own
        os.close(slave)
        os.close(master)
        done = process.wait(240)
    finally:
        process.kill()
    assert "Traceback" not in done.stdout + done.stderr
    if how == "hung up":
        assert done.returncode == 128 + signal.SIGHUP
        assert not (tmp_path / "run" / "encoder.safetensors").exists()
        assert re.findall("[1-9]", checkpoints(tmp_path / "run")[-1].name), "after some steps"
        return
    assert done.returncode == 0
    assert len(read_metrics(tmp_path / "run")) == 12
    assert "pretrain" in read_results(tmp_path / "run" / "results.json")


def in_the_background(name: str) -> None:
    """A job of a shell, `mixco ... &`, in a terminal that stops what writes to it from there."""
    in_a_terminal(name, own=True)
    modes = termios.tcgetattr(1)
    modes[3] |= termios.TOSTOP
    termios.tcsetattr(1, termios.TCSANOW, modes)
    job = os.fork()
    if job:  # the shell
        _, status = os.waitpid(job, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(job, signal.SIGKILL)
            os._exit(99)
        os._exit(os.waitstatus_to_exitcode(status))
    os.setpgid(0, 0)


def test_a_terminal_does_not_stop_what_writes_from_the_background() -> None:
    master, slave = pty.openpty()
    before = partial(in_the_background, os.ttyname(slave))
    done = Python("-m", "mixco", "--version", before=before).wait()
    assert done.returncode == 0
    assert b"mixco" in os.read(master, 1000)
    os.close(slave)
    os.close(master)


# From a shell.


def closed(*numbers: int) -> None:
    """As Python finds itself after `2>&-`."""
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def sent_to(path: str, *numbers: int) -> None:
    file = os.open(path, os.O_WRONLY)
    for number in numbers:
        os.dup2(file, number)
    os.close(file)


def unread(*numbers: int) -> None:
    """As before `| head` that has ended."""
    out, into = os.pipe()
    os.close(out)
    for number in numbers:
        os.dup2(into, number)
    os.close(into)


BAD: dict[str, Callable[[], None]] = {
    "no stderr": partial(closed, 2),
    "no streams": partial(closed, 0, 1, 2),
    "full": partial(sent_to, "/dev/full", 1, 2),
    "unread": partial(unread, 1, 2),
}


@pytest.mark.parametrize("how", BAD)
def test_a_run_goes_on_to_its_end_whatever_its_streams_are(
    photos: Path, tmp_path: Path, how: str
) -> None:
    command = [*pretraining(photos, tmp_path / "run"), "--loading", "streamed", "--workers", "1"]
    done = Python(*command, before=BAD[how]).wait()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    results = read_results(tmp_path / "run" / "results.json")
    assert "pretrain" in results
    assert (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("command", ["knn --run RUN", "report RUN", "duplicates RUN", "embed RUN"])
def test_other_commands_work_and_end_without_a_traceback(
    run: Path, photos: Path, tmp_path: Path, how: str, command: str
) -> None:
    words = command.replace("RUN", str(run)).split()
    name, out = words[0], {"embed": "v.npz", "report": "page.html", "duplicates": "groups.csv"}
    where = tmp_path / out.get(name, "knn")
    cache = () if name == "report" else ("--cache", str(photos.parent / "cache"))
    before = BAD[how]
    done = Python("-m", "mixco", *words, "--out", where, *cache, before=before).wait()
    prints = name in ("knn", "duplicates")
    ends = {"full": 2, "unread": 1}.get(how, 0) if prints else 0
    assert (done.returncode, done.stderr) == (ends, "")
    assert bool(done.stdout) == (prints and how == "no stderr")
    assert (where / "results.json" if name == "knn" else where).exists()


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("--version > /dev/full", 2, "", "cannot be written"),
        ("--help > /dev/full", 2, "", "cannot be written"),
        ("pretrain --help > /dev/full", 2, "", "cannot be written"),
        ("--version 2> /dev/full", 0, "mixco", ""),
        ("nonsense 2> /dev/full", 2, "", ""),
        ("nonsense 2>&-", 2, "", ""),
        ("--version 2>&-", 0, "mixco", ""),
        ("--version >&-", 0, "", ""),
        ("--version <&- >&- 2>&-", 0, "", ""),
        ("--help | true", 1, "", ""),
        ("pretrain --help | true", 1, "", ""),
    ],
)
def test_an_interpreter_of_its_own_ends_with_the_right_code(
    line: str, code: int, out: str, err: str
) -> None:
    """Python itself ends with 120 where a stream cannot be flushed at the end."""
    command, _, rest = line.partition(" |")
    pipe = f" |{rest}" if rest else ""
    reading, writing = os.pipe()
    script = f'({sys.executable} -m mixco {command}; echo "code $?" >&{writing}){pipe}'
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, pass_fds=[writing]
    )
    os.close(writing)
    with os.fdopen(reading) as codes:
        assert codes.read() == f"code {code}\n"
    assert done.stdout.startswith(out) and bool(done.stdout) == bool(out)
    assert err in done.stderr and bool(done.stderr) == bool(err), done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from mixco.runtime.streams import usable_streams\n"
        "with usable_streams():\n"
        "    names = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        "    print('lost'); print('lost', file=sys.stderr)\n"
        "    assert all(map(os.get_inheritable, range(3)))\n"
        f"    open({str(tmp_path / 'names')!r}, 'w').write(' '.join(names))\n"
    )
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    done = Python("-c", code, before=partial(closed, 0, 1, 2)).wait()
    assert done.returncode == 0
    assert (tmp_path / "names").read_text() == "/dev/null /dev/null /dev/null"


WITHOUT = """
import sys
sys.stdout = sys.stderr = None
import mixco
mixco.pretrain(data=sys.argv[1], out=sys.argv[2], cache=sys.argv[3], size=32, arch="test_resnet",
    stem="standard", epochs=1, batch_size=16, device="cpu")
mixco.evaluate_knn(run=sys.argv[2], cache=sys.argv[3], device="cpu")
"""
IN_A_THREAD = """
import asyncio, sys, mixco
settings = dict(data=sys.argv[1], out=sys.argv[2], cache=sys.argv[3], size=32, arch="test_resnet",
    stem="standard", epochs=1, batch_size=16, device="cpu", loading="streamed", workers=1)
async def work():
    await asyncio.to_thread(mixco.pretrain, **settings)
    await asyncio.to_thread(mixco.evaluate_knn, run=sys.argv[2], cache=sys.argv[3], device="cpu")
if __name__ == "__main__":
    asyncio.run(work())
"""


@pytest.mark.parametrize("code", [WITHOUT, IN_A_THREAD], ids=["without streams", "in a thread"])
def test_python_works_without_streams_and_in_a_thread(
    photos: Path, tmp_path: Path, code: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    done = python(script, photos, tmp_path / "run", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert {"pretrain", "knn"} <= read_results(tmp_path / "run" / "results.json").keys()


class Failing(io.StringIO):
    """A stream that fails for a while."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [OSError(5, "EIO"), OSError(28, "full"), BrokenPipeError(32, "pipe"), ValueError("closed")],
)
def test_what_is_said_never_fails_and_goes_on_when_it_can(error: Exception) -> None:
    stream = Failing(error)
    messages = Messages(lambda: stream)
    assert messages.write("lost\n") == 5
    messages.flush()
    stream.error = None
    messages.write("said\n")
    assert stream.getvalue() == "said\n"
    assert not messages.isatty()
    assert Messages(lambda: None).write("x") == 1
    assert not Messages(lambda: None).isatty()


def test_what_is_answered_is_not_lost_without_a_word() -> None:
    with pytest.raises(Unread):
        Answers(lambda: Failing(BrokenPipeError(32, "pipe"))).write("x\n")
    with pytest.raises(mixco.UserError, match=r"No room.*elsewhere"):
        Answers(lambda: Failing(OSError(28, "No room"))).write("x\n")
    assert Answers(lambda: Failing(OSError(5, "EIO"))).write("x\n") == 2, "nobody is there"


# Letters.


@pytest.mark.parametrize(
    ("encoding", "shows"),
    [
        ("ascii", r"+- ... \xfc \u65e5 \udcdf"),
        ("cp1252", r"± … ü \u65e5 \udcdf"),
        ("utf-8", r"± … ü 日 \udcdf"),
    ],
)
def test_what_a_console_cannot_show_is_escaped(encoding: str, shows: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Messages(lambda: stream).write("± … ü 日 \udcdf\n")
    assert raw.getvalue().decode(encoding) == f"{shows}\n"


def test_names_for_people_and_names_for_lists() -> None:
    name = "stra\udcdfe ü\n\t日.jpg"
    assert shown(name) == r"stra\udcdfe ü\n\t日.jpg"
    assert in_line(name) == "stra\udcdfe ü\\n\\t日.jpg"


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, a class and files whose names are Latin-1, as of an old archive."""
    folder = unpack_sample(
        tmp_path_factory.mktemp("latin") / "b\udce4r", train=12, test=4, classes=3
    )
    try:
        for split in ("train", "test"):
            (folder / split / "Forest").rename(folder / split / "W\udce4ld")
            first, second, *_ = sorted((folder / split / "W\udce4ld").iterdir())
            first.rename(first.with_name("\udcfcber.jpg"))
            second.rename(second.with_name("zwei\nzeilen.jpg"))
    except OSError:
        pytest.skip("this file system takes no such names")
    return folder


def encoded(encoding: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(encoding=encoding, errors="strict")


def test_names_that_are_no_utf8_go_through_every_command(latin: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    command = pretraining(latin, out)
    command[command.index("--cache") + 1] = str(cache)
    kept = ("--cache", str(cache), "--device", "cpu")
    one = str(latin / "train" / "W\udce4ld" / "\udcfcber.jpg")
    commands = [
        [*command, "--report"],
        ["-m", "mixco", "knn", "--run", out, *kept],
        ["-m", "mixco", "linear", "--run", out, *kept, "--protocol", "paper", "--epochs", "1"],
        ["-m", "mixco", "neighbours", out, one, "--picture", tmp_path / "n.png", *kept],
        ["-m", "mixco", "embed", out, "--out", tmp_path / "v.safetensors", *kept],
        *(
            [
                "-m",
                "mixco",
                "duplicates",
                out,
                "--out",
                tmp_path / f"g.{kind}",
                *kept,
                "--threshold",
                "0.1",
            ]
            for kind in ("csv", "json")
        ),
        ["-m", "mixco", "report", out],
        ["-m", "mixco", "export", out, "--to", "safetensors"],
        [
            "-m",
            "mixco",
            "doctor",
            latin,
            "--no-trial",
            "--json",
            tmp_path / "d.json",
            "--cache",
            cache,
        ],
    ]
    for words in commands:
        done = Python(*words, before=partial(encoded, "ascii")).wait()
        assert done.returncode == 0, (words, done.stderr)
        assert (done.stdout + done.stderr).isascii()
        if "neighbours" in words:
            assert r"W\udce4ld/\udcfcber.jpg" in done.stdout
    classes = {name for pair in read_confusions(out / "confusions-knn.csv") for name in pair}
    assert "W\udce4ld" in classes
    assert b"W\xe4ld" in (out / "confusions-knn.csv").read_bytes()
    with safe_open(out / "classifier.safetensors", "pt") as classifier:
        assert "W\udce4ld" in json.loads(classifier.metadata()["mixco-classifier"])["classes"]
    with (tmp_path / "g.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        listed = {row["path"] for row in csv.DictReader(file)}
    groups = json.loads((tmp_path / "g.json").read_text("ascii"))
    assert listed == {path for group in groups for path in group["paths"]}
    assert one in listed and all(Path(path).exists() for path in listed)
    assert r"W\udce4ld" in (out / "report.html").read_text("utf-8")
    assert mixco.neighbours(out, one, among=str(tmp_path / "v.safetensors"), k=1, device="cpu")


def test_lists_of_what_was_left_out_hold_the_names_themselves(latin: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(latin / "train", own)
    for number in range(4):
        shutil.copytree(latin / "train", own / str(number))
    bad = own / "W\udce4ld" / "kaputt\udcfc\n.jpg"
    bad.write_bytes(b"")
    run = random_run(tmp_path / "run", own)
    out = mixco.embed(run, own, out=tmp_path / "v.npz", device="cpu", cache=tmp_path / "cache")
    listed = out.with_name("v.npz.unreadable.txt").read_bytes()
    assert listed.startswith(b"W\xe4ld/kaputt\xfc\\n.jpg\t")


def test_a_folder_that_libraries_cannot_open_is_refused_before_the_work(
    photos: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "r\udcfcn"
    done = python(*pretraining(photos, odd))
    assert done.returncode == 2 and not odd.exists()
    assert r"r\udcfcn: its name is not UTF-8" in done.stderr.splitlines()[-1]
    config = config_of(KNNConfig, run=odd)
    assert config.evaluation.run == odd
