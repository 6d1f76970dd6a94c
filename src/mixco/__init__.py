"""MixCo: contrastive pretraining of image encoders with mixed images, on MoCo and on SimCLR.

The public names. Each is loaded when it is first asked for, so that `import mixco` and
`mixco --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixco import losses as losses
    from mixco import mixing as mixing
    from mixco.api import (
        Run,
        compare,
        duplicates,
        embed,
        evaluate,
        evaluate_knn,
        evaluate_linear,
        finetune,
        neighbours,
        pretrain,
    )
    from mixco.embeddings.commands import Neighbours
    from mixco.embeddings.duplicates import Duplicates
    from mixco.embeddings.embedding import Embedder, load_encoder
    from mixco.encoders.checkpoint import EncoderDescription
    from mixco.encoders.loading import LoadedEncoder
    from mixco.losses import soft_infonce
    from mixco.methods.barlow import BarlowTwins
    from mixco.methods.byol import BYOL
    from mixco.methods.distil import Distil
    from mixco.methods.moco import MoCo
    from mixco.methods.simclr import SimCLR
    from mixco.methods.simsiam import SimSiam
    from mixco.mixing import Mixed, Mixer, Pairs, mixco
    from mixco.runtime.errors import UserError
    from mixco.settings.commands import (
        ClassifierConfig,
        EvaluationConfig,
        FinetuneConfig,
        KNNConfig,
        LinearConfig,
    )
    from mixco.settings.config import (
        DataConfig,
        MethodConfig,
        ModelConfig,
        OptimisationConfig,
        PretrainConfig,
        RunConfig,
    )
    from mixco.settings.parse import load_recipe
    from mixco.views.two_views import TwoViews

_HOMES = {
    "mixco.api": (
        "Run",
        "compare",
        "duplicates",
        "embed",
        "evaluate",
        "evaluate_knn",
        "evaluate_linear",
        "finetune",
        "neighbours",
        "pretrain",
    ),
    "mixco.encoders.checkpoint": ("EncoderDescription",),
    "mixco.encoders.loading": ("LoadedEncoder",),
    "mixco.embeddings.commands": ("Neighbours",),
    "mixco.embeddings.duplicates": ("Duplicates",),
    "mixco.embeddings.embedding": ("Embedder", "load_encoder"),
    "mixco.settings.commands": (
        "ClassifierConfig",
        "EvaluationConfig",
        "FinetuneConfig",
        "KNNConfig",
        "LinearConfig",
    ),
    "mixco.settings.config": (
        "DataConfig",
        "MethodConfig",
        "ModelConfig",
        "OptimisationConfig",
        "PretrainConfig",
        "RunConfig",
    ),
    "mixco.runtime.errors": ("UserError",),
    "mixco.losses": ("soft_infonce",),
    "mixco.methods.barlow": ("BarlowTwins",),
    "mixco.methods.byol": ("BYOL",),
    "mixco.methods.distil": ("Distil",),
    "mixco.methods.moco": ("MoCo",),
    "mixco.methods.simclr": ("SimCLR",),
    "mixco.methods.simsiam": ("SimSiam",),
    "mixco.mixing": ("Mixed", "Mixer", "Pairs", "mixco"),
    "mixco.settings.parse": ("load_recipe",),
    "mixco.views.two_views": ("TwoViews",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BYOL",
    "BarlowTwins",
    "ClassifierConfig",
    "DataConfig",
    "Distil",
    "Duplicates",
    "Embedder",
    "EncoderDescription",
    "EvaluationConfig",
    "FinetuneConfig",
    "KNNConfig",
    "LinearConfig",
    "LoadedEncoder",
    "MethodConfig",
    "Mixed",
    "Mixer",
    "MoCo",
    "ModelConfig",
    "Neighbours",
    "OptimisationConfig",
    "Pairs",
    "PretrainConfig",
    "Run",
    "RunConfig",
    "SimCLR",
    "SimSiam",
    "TwoViews",
    "UserError",
    "compare",
    "duplicates",
    "embed",
    "evaluate",
    "evaluate_knn",
    "evaluate_linear",
    "finetune",
    "load_encoder",
    "load_recipe",
    "mixco",
    "neighbours",
    "pretrain",
    "soft_infonce",
]


def __getattr__(name: str) -> Any:
    if name in ("losses", "mixing"):  # the paper, as modules
        return import_module(f"mixco.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mixco' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
