"""The public names: exactly these, all there, and cheap until one is used."""

import subprocess
import sys

import mixco


def test_the_public_names() -> None:
    configs = {
        *("PretrainConfig", "DataConfig", "ModelConfig", "MethodConfig", "OptimisationConfig"),
        *("RunConfig", "EvaluationConfig", "LinearConfig", "KNNConfig"),
        *("ClassifierConfig", "FinetuneConfig"),
    }
    commands = {"pretrain", "evaluate", "evaluate_linear", "evaluate_knn", "finetune"}
    commands |= {"compare", "embed", "neighbours", "duplicates"}
    loaders = {"load_encoder", "load_recipe"}
    method = {
        "MoCo",
        "SimCLR",
        "BYOL",
        "SimSiam",
        "BarlowTwins",
        "Distil",
        "Mixed",
        "Mixer",
        "Pairs",
        "mixco",
    }
    method |= {"soft_infonce", "TwoViews"}
    results = {"EncoderDescription", "LoadedEncoder", "Embedder", "Run", "UserError"}
    results |= {"Neighbours", "Duplicates"}
    assert set(mixco.__all__) == configs | commands | loaders | method | results
    for name in mixco.__all__:
        assert getattr(mixco, name).__module__.startswith("mixco."), name


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, mixco, mixco.cli; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
