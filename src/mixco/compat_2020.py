"""Translates command lines of the code of 2020 (Lee-Gihun/MixCo-Mixup-Contrast) into today's options.

The two scripts at the repository's root use it. Options of today may stand among those of 2020; a
command line without any of 2020's stays as it is.
"""

import sys
from collections.abc import Callable

import mixco.cli
from mixco.runtime.errors import UserError
from mixco.runtime.streams import shown_lines, usable_streams
from mixco.settings.parse import nearest

SAME = {
    "-a": "--arch",
    "--dataset": "--data",
    "-b": "--batch-size",
    "--learning-rate": "--lr",
    "--wd": "--weight-decay",
    "-e": "--evaluate",
    "-j": "--workers",
    "--num-workers": "--workers",
}
PRETRAINING = {
    "--moco-k": "--queue",
    "--moco-m": "--momentum",
    "--moco-t": "--temperature",
    "--moco-dim": "--dim",
    "--mixco-t": "--mix-temperature",
    "--mix-param": "--mix-weight",
    "--out-dim": "--dim",
}
ONE_DEVICE = "one process trains on one device; CUDA_VISIBLE_DEVICES picks it"
# How many words follow each option (None: any number), and why it is left out.
LEFT_OUT: dict[str, tuple[int | None, str]] = {
    "--gpu": (None, ONE_DEVICE),
    "--multiprocessing-distributed": (0, ONE_DEVICE),
    "--world-size": (1, ONE_DEVICE),
    "--rank": (1, ONE_DEVICE),
    "--dist-url": (1, ONE_DEVICE),
    "--dist-backend": (1, ONE_DEVICE),
    "-p": (1, "a bar and a line for each epoch show the progress"),
    "--print-freq": (1, "a bar and a line for each epoch show the progress"),
    "--log_every_n_steps": (1, "a bar and a line for each epoch show the progress"),
    "--fp16_precision": (0, "the fastest number format is used; see --precision"),
    "--save-freq": (1, "see --keep-every; the last epoch is always saved"),
    "--start-epoch": (1, "the same command resumes a run that was stopped"),
    "--resume": (1, "the same command resumes a run that was stopped"),
}
ONLY_MOCO = {"--mlp", "--aug-plus", *(PRETRAINING.keys() - {"--out-dim"})}
ONLY_SIMCLR = {"--out-dim", "--fp16_precision", "--log_every_n_steps"}
ONLY_2020 = {*SAME, *PRETRAINING, *LEFT_OUT, *ONLY_MOCO, "--algo", "--cos", "--exp-name"}
# Those defaults of 2020 that differ from today's.
BOTH_2020 = "--data tiny-imagenet --size 224 --stem standard --optimizer sgd --mix none --dim 128"
MOCO_2020 = (
    "--method moco --head linear --augmentation moco-v1 --temperature 0.07 --mix-temperature 0.05 "
    "--queue 65536 --momentum 0.999 --lr 0.015 --weight-decay 1e-4 --epochs 200 --schedule steps "
    "--warmup 0"
)
SIMCLR_2020 = (
    "--method simclr --head mlp --temperature 0.5 --mix-temperature 0.5 --lr 0.3 --weight-decay 1e-6 "
    "--epochs 100"
)


def main(command: str, translate: Callable[[list[str], Callable[[str], None]], list[str]]) -> None:
    """Run a command of mixco with the arguments of this process, translated."""

    def tell(sentence: str) -> None:
        print(shown_lines(f"mixco: {sentence}"), file=sys.stderr)

    with usable_streams():
        try:
            options = translate(sys.argv[1:], tell)
        except UserError as error:
            tell(str(error))
            sys.exit(2)
        mixco.cli.main([command, *options])


def pretrain_options(arguments: list[str], tell: Callable[[str], None]) -> list[str]:
    """Translate the options of `python pretrain.py` into those of `mixco pretrain`.

    tell(sentence) is called for each option that no longer has a meaning.

    Raises UserError where the base method is unclear, or an option asks for what no longer exists.
    """
    old = _split(arguments)
    flag_mix = old.get("--mix") == []  # SimCLR's of 2020; today's has a word behind it
    if not (old.keys() & ONLY_2020 or flag_mix):
        return arguments
    algorithm = " ".join(old.pop("--algo", []))
    if algorithm not in ("", "moco", "mixco"):
        raise UserError(f"--algo {algorithm}; {nearest(algorithm, ('moco', 'mixco'))}")
    moco = bool(algorithm or old.keys() & ONLY_MOCO)
    simclr = bool(flag_mix or old.keys() & ONLY_SIMCLR or old.get("--method") == ["simclr"])
    if moco == simclr:
        raise UserError("say which base method: --algo moco, --algo mixco, or --method simclr")
    new = _split(f"{BOTH_2020} {MOCO_2020 if moco else SIMCLR_2020}".split())
    epochs = _number(old.get("--epochs"), new["--epochs"][0])
    if simclr:  # ten epochs, which 2020's code meant as a warm-up
        new["--warmup"] = [f"{min(10 / epochs, 0.5):g}"]
    if algorithm == "mixco" or flag_mix:
        new["--mix"] = ["mixco"]
    if flag_mix:
        del old["--mix"]
    if old.pop("--mlp", None) is not None:
        new["--head"] = ["mlp"]
    if old.pop("--aug-plus", None) is not None:
        new["--augmentation"] = ["moco-v2"]
    milestones = _milestones(old, epochs)
    if old.pop("--cos", None) is not None or simclr:
        new["--schedule"] = ["cosine"]
    elif milestones is not None:
        new["--milestones"] = milestones
    if old.get("--mix-param") == ["0"]:
        del old["--mix-param"]
        new["--mix"] = ["none"]
    name = old.pop("--exp-name", None)
    if name:
        new["--out"] = [f"runs/{name[0]}"]
    return _joined({**new, **_renamed(old, {**SAME, **PRETRAINING}, tell)})


def linear_options(arguments: list[str], tell: Callable[[str], None]) -> list[str]:
    """Translate the options of `python lincls.py` into those of `mixco linear --protocol paper`.

    --pretrained takes a run folder or a checkpoint. Without it --exp-name X evaluates runs/X, which
    pretrain.py --exp-name X has made. See `pretrain_options` for the rest.
    """
    old = _split(arguments)
    new = {"--protocol": ["paper"]}
    name, checkpoint = old.pop("--exp-name", []), old.pop("--pretrained", [])
    if checkpoint:
        folder = not checkpoint[0].endswith((".pt", ".pth", ".tar", ".safetensors"))
        new["--run" if folder else "--checkpoint"] = checkpoint
    if name:
        new["--out" if checkpoint else "--run"] = [f"runs/{name[0]}"]
    # A run knows its network, its data and its size; a checkpoint of 2020 does not.
    if "--checkpoint" not in new and (old.pop("-a", []) + old.pop("--arch", [])):
        tell("-a, --arch: left out; the run knows its network")
    milestones = _milestones(old, _number(old.get("--epochs"), "100"))
    if milestones is not None:
        new["--milestones"] = milestones
    return _joined({**new, **_renamed(old, SAME, tell)})


def _split(arguments: list[str]) -> dict[str, list[str]]:
    """{option: the words behind it}; of an option that is given twice, the last."""
    found: dict[str, list[str]] = {}
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and not argument[1:2].isdigit():
            option, equals, value = argument.partition("=")
            words = [value] if equals else []
            found[option] = words
        elif found:
            words.append(argument)
        else:
            raise UserError(f"{argument}: expected an option")
    return found


def _number(words: list[str] | None, default: str) -> int:
    """The first word as a number, else the default; the command refuses what is no number."""
    return int(words[0]) if words and words[0].isdigit() and int(words[0]) else int(default)


def _milestones(old: dict[str, list[str]], epochs: int) -> list[str] | None:
    """The epochs of 2020's --schedule as shares of the run; today's --schedule, a word, stays."""
    schedule = old.get("--schedule")
    if schedule is None or not all(word.isdigit() for word in schedule):
        return None
    del old["--schedule"]
    return [f"{int(word) / epochs:g}" for word in schedule if int(word) < epochs]


def _renamed(
    old: dict[str, list[str]], names: dict[str, str], tell: Callable[[str], None]
) -> dict[str, list[str]]:
    renamed: dict[str, list[str]] = {}
    for option, words in old.items():
        if option == "--momentum":  # SGD's, not today's of the key encoder
            if words != ["0.9"]:
                raise UserError("--momentum: SGD's is 0.9; the key encoder's is --moco-m")
        elif option in LEFT_OUT:
            count, why = LEFT_OUT[option]
            if count is not None and len(words) > count:
                raise UserError(f"{option}: {words[count]} behind it is one word too many")
            tell(f"{option}: left out; {why}")
        else:
            renamed[names.get(option, option)] = words
    return renamed


def _joined(options: dict[str, list[str]]) -> list[str]:
    return [word for option, words in options.items() for word in (option, *words)]
