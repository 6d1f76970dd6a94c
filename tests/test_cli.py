"""The command line as a process: what is printed, and with which exit code."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sample_images import unpack_sample

import mixco.cli
from mixco.training.checkpoints import checkpoints


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mixco", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, timeout=200
    )


def test_help_names_the_verbs_and_the_recipes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("demo", "pretrain", "linear", "knn", "download", "Recipes: "):
        assert word in done.stdout
    assert run("--version").stdout.startswith("mixco 0.")


@pytest.mark.parametrize("verb", list(mixco.cli.VERBS))
def test_each_verbs_help_is_told_without_loading_torch(verb: str) -> None:
    code = (
        "import sys, mixco.cli\n"
        f"try: mixco.cli.main(['{verb}', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: mixco {verb} " in done.stdout


PROMISED = [
    *("--recipe", "--data", "--data-path", "--method", "--mix", "--arch", "--size", "--epochs"),
    *("--batch-size", "--seed", "--out"),
]


def test_the_spellings_that_were_promised() -> None:
    text = run("pretrain", "--help").stdout
    assert all(f"{option} " in text for option in PROMISED)
    for verb in ("linear", "knn", "finetune"):
        text = run(verb, "--help").stdout
        options = ("--run", "--checkpoint", "--data", "--data-path", "--labels", "--out")
        assert all(f"{o} " in text for o in options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "did you mean pretrain?"),
        (["pretrain", "--recipe", "demmo"], "no such recipe; did you mean demo?"),
        (["pretrain", "--epoch", "3"], "--epochs"),
        (["pretrain", "--method", "simcrl"], "simclr"),
        (["pretrain", "--data", "sampel", "--out", "x"], "did you mean sample?"),
        (["pretrain", "--data", "tiny-imagenet"], "needs --data-path"),
        (["pretrain", "--arch", "resnet81", "--out", "x"], "did you mean resnet18"),
        (["pretrain", "--size", "16", "--out", "x"], "--size 16: 32 to 224 pixels"),
        (["pretrain", "--batch-size", "5000", "--out", "x"], "there are only 1600 images"),
        (["pretrain", "--device", "cuda", "--out", "x"], "this machine has none"),
        (["knn", "--run", "nowhere"], "there is no such file"),
        (["linear", "--checkpoint", "nothing.pt", "--data", "sample"], "there is no such file"),
        (["finetune", "--run", "nowhere"], "there is no such file"),
        (["finetune", "--checkpoint", "x.pt", "--data", "sample"], "give --out, the folder"),
        (["finetune", "--run", "nowhere", "--head-lr", "0"], "--head-lr 0.0: above 0"),
        (["linear", "--lr", "3"], "--lr, --batch-size, --weight-decay, --milestones, --supervised"),
        (["linear", "--protocol", "paper", "--milestones", "60"], "--milestones 60.0: shares of"),
        (["linear", "--protocol", "paper", "--batch-size", "0"], "--batch-size 0: at least 1"),
        (["knn"], "give either --run RUN_DIR or --checkpoint FILE"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    if "--device" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_mistake_shows_no_traceback() -> None:
    done = run("pretrain", "--batch-size", "5000")
    assert done.returncode == 2
    assert done.stderr.startswith("mixco: --batch-size 5000: there are only 1600 images")
    assert len(done.stderr.splitlines()) == 1


def test_from_a_folder_of_ones_own_to_its_evaluation(tmp_path: Path) -> None:
    """What a user does, by the commands that the README names."""
    unpack_sample(tmp_path / "photos", train=12, test=4, classes=3)
    out, cache = tmp_path / "out", tmp_path / "cache"
    small = ["--size", "32", "--epochs", "2", "--batch-size", "12", "--knn-every", "1"]
    done = run(
        *("pretrain", "--data", tmp_path / "photos", "--method", "moco", "--mix", "mixco"),
        *(*small, "--cache", cache, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    assert "kNN" in done.stderr
    assert f"done: {out}" in done.stderr

    for verb in ("knn", "linear"):
        done = run(verb, "--run", out, "--cache", cache)
        assert done.returncode == 0, done.stderr
        assert "all 120 weights matched resnet18" in done.stderr
        assert "12 images of photos/test, 36 labelled; moco+mixco on photos/pretrain" in done.stdout
        other = run(
            *(verb, "--checkpoint", checkpoints(out)[-1]),
            *("--data", tmp_path / "photos", "--cache", cache),
        )
        assert other.stdout == done.stdout, "a checkpoint of the end is the encoder"
