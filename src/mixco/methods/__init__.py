"""The bases and the mixers by name: one line each.

Nothing heavy is imported here, so that the command line can name them without loading torch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mixco.methods.options import (
    Advice,
    BarlowConfig,
    BYOLConfig,
    ContrastiveConfig,
    DistilConfig,
    MoCoConfig,
    PredictorConfig,
    advise_moco,
    advise_simclr,
    advise_without_negatives,
    no_advice,
    nothing_refused,
    refuse_moco,
)

if TYPE_CHECKING:
    from mixco.mixing import Mixer


class Base(NamedTuple):
    """A base method: what the mixing is added to."""

    title: str
    """As tables and model cards call it."""
    arxiv: str
    """Of the paper."""
    build: str
    """"module:function" that builds the method; see methods/moco.py for its arguments."""
    augmentation: str
    """The usual one, a name of views.augment.AUGMENTATIONS."""
    bn_over: str
    """Whose images give a batch norm its statistics: "process" for those of each process, "all"."""
    passes: float
    """Forward passes with a gradient, for each image of a batch."""
    mixed_views: int
    """Views that are mixed."""
    sgd_lr: float
    """The usual peak rate of SGD for a batch of 256."""
    adamw_lr: float = 1e-3
    """The same of AdamW."""
    views: int = 2
    """Views of each image."""
    head: str = "mlp"
    """The usual projection head, a name of models.heads.HEADS."""
    dim: int = 128
    """Its usual dimensions."""
    alone_passes: float = 0.0
    """Passes of clean images with a gradient where the mixed loss is alone."""
    mixed_apart: bool = False
    """Are mixed images encoded on their own, without clean ones beside them for batch norm?"""
    own_views: bool = False
    """Can it compare each source of a mixed image in the source's own view?"""
    needs_clean: bool = False
    """Does it learn nothing from the mixed loss alone?"""
    teacher: bool = False
    """Does it learn from a trained encoder, --teacher?"""
    options: type | None = None
    """A dataclass of settings that this base alone has."""
    advise: Callable[[Any, int, int], Iterator[Advice]] = no_advice
    """(resolved settings of the method, images, batch) -> what may spoil a run."""
    refuse: Callable[[Any, int], str | None] = nothing_refused
    """(settings of the method, batch) -> why they cannot be; None where they can."""


class MixerEntry(NamedTuple):
    """A mixer, by the place where it is."""

    title: str
    arxiv: str
    mixer: str
    """"module:name" of a `mixing.Mixer`."""
    alpha: float | None = None
    """The published alpha of lambda ~ Beta(alpha, alpha). The mixer's `draw` accepts others by keyword.
    None: the mixer draws lambda from another law."""
    loss: Literal["added", "alone"] = "added"
    """Is the mixed loss added to the clean one, or is it alone, as published?"""
    needs_own_views: bool = False
    """Does it compare each source in its own view? Its `target_view` is "own" then."""
    nearest: str = ""
    """The most similar mixer, for bases that this one does not work with."""


METHODS: dict[str, Base] = {
    "moco": Base(
        "MoCo",
        "2003.04297",
        "mixco.methods.moco:build",
        augmentation="moco-v2",
        bn_over="process",
        passes=1.0,
        mixed_views=1,
        sgd_lr=0.06,
        options=MoCoConfig,
        advise=advise_moco,
        refuse=refuse_moco,
    ),
    "simclr": Base(
        "SimCLR",
        "2002.05709",
        "mixco.methods.simclr:build",
        augmentation="simclr",
        bn_over="all",
        passes=2.0,
        mixed_views=2,
        sgd_lr=0.3,
        alone_passes=1.0,
        options=ContrastiveConfig,
        advise=advise_simclr,
    ),
    "byol": Base(
        "BYOL",
        "2006.07733",
        "mixco.methods.byol:build",
        augmentation="moco-v2",
        bn_over="all",
        passes=2.0,
        mixed_views=1,
        sgd_lr=0.05,
        head="mlp-bn",
        dim=256,
        mixed_apart=True,
        own_views=True,
        options=BYOLConfig,
        advise=advise_without_negatives,
    ),
    "simsiam": Base(
        "SimSiam",
        "2011.10566",
        "mixco.methods.simsiam:build",
        augmentation="moco-v2",
        bn_over="all",
        passes=2.0,
        mixed_views=1,
        sgd_lr=0.03,
        adamw_lr=3e-4,  # at 1e-3 it falls below random weights (experiments/choose_predictors.txt)
        head="mlp-bn-last",
        dim=2048,
        mixed_apart=True,
        own_views=True,
        options=PredictorConfig,
        advise=advise_without_negatives,
    ),
    "barlow": Base(
        "Barlow Twins",
        "2103.03230",
        "mixco.methods.barlow:build",
        augmentation="moco-v2",
        bn_over="all",
        passes=2.0,
        mixed_views=1,
        sgd_lr=1e-4,  # its loss is a sum over the dimensions
        head="mlp3-bn",
        dim=2048,
        mixed_apart=True,
        own_views=True,
        needs_clean=True,
        options=BarlowConfig,
        advise=advise_without_negatives,
    ),
    "distil": Base(
        "SEED",
        "2101.04731",
        "mixco.methods.distil:build",
        augmentation="moco-v2",
        bn_over="all",
        passes=1.0,
        mixed_views=1,
        sgd_lr=0.03,
        views=1,
        teacher=True,
        options=DistilConfig,
    ),
}

MIXERS: dict[str, MixerEntry] = {
    "mixco": MixerEntry("MixCo", "2010.06300", "mixco.mixing:mixco", alpha=1.0),
    "imix": MixerEntry("i-Mix", "2010.08887", "mixco.methods.mixers:imix", alpha=1.0, loss="alone"),
    "icutmix": MixerEntry(
        "i-CutMix", "2010.08887", "mixco.methods.mixers:icutmix", alpha=1.0, loss="alone"
    ),
    "unmix": MixerEntry("Un-Mix", "2003.05438", "mixco.methods.mixers:unmix", alpha=1.0),
    "unmix-blend": MixerEntry(
        "Un-Mix (blends)", "2003.05438", "mixco.methods.mixers:unmix_blend", alpha=1.0
    ),
    "unmix-box": MixerEntry(
        "Un-Mix (boxes)", "2003.05438", "mixco.methods.mixers:unmix_box", alpha=1.0
    ),
    "cutmix": MixerEntry("CutMix", "1905.04899", "mixco.methods.mixers:cutmix", alpha=1.0),
    "myol": MixerEntry(
        "MYOL",
        "",
        "mixco.methods.mixers:myol",
        alpha=2.0,
        needs_own_views=True,
        nearest="unmix-blend",
    ),
    "mixbt": MixerEntry(
        "Mixed Barlow Twins",
        "2312.02151",
        "mixco.methods.mixers:mixbt",
        alpha=1.0,
        needs_own_views=True,
        nearest="unmix-blend",
    ),
}

NO_MIXER = "none"


def mixer_of(mix: str, alpha: float | None = None, loss: str = "auto") -> "Mixer | None":
    """The mixer by its name; None for none. It loads torch.

    alpha: of Beta(alpha, alpha), the law of lambda. loss: "added" to the clean one, or "alone". Unless
    they are given, as published.
    """
    if mix == NO_MIXER:
        return None
    entry = MIXERS[mix]
    mixer: Mixer = resolve_name(entry.mixer)
    if alpha not in (None, entry.alpha):
        draw: Any = mixer.draw
        mixer = mixer._replace(draw=partial(draw, alpha=alpha))
    return mixer if loss == "auto" else mixer._replace(alone=loss == "alone")


def works(method: str, mix: str) -> bool:
    """Does a mixer make sense on a base, as published? Where not, settings/resolve.py says why."""
    if mix == NO_MIXER:
        return True
    base, entry = METHODS[method], MIXERS[mix]
    across = entry.needs_own_views and not base.own_views
    return not across and not (entry.loss == "alone" and base.needs_clean)


def passes_of(base: Base, mixer: "Mixer | None") -> float:
    """Forward passes with a gradient, for each image of a batch."""
    if mixer is None:
        return base.passes
    if mixer.alone:
        return base.alone_passes + mixer.per_image
    return base.passes + base.mixed_views * mixer.per_image


def title(method: str, mix: str) -> str:
    """ "SimCLR with MixCo" of "simclr" and "mixco"; unknown names stay as they are."""
    base = METHODS[method].title if method in METHODS else method
    if mix in (NO_MIXER, ""):
        return base
    return f"{base} with {MIXERS[mix].title if mix in MIXERS else mix}"


def papers() -> dict[str, tuple[str, str]]:
    """Title and arXiv number of each base and mixer, by its name; "" where it is not on arXiv."""
    bases = {name: (base.title, base.arxiv) for name, base in METHODS.items()}
    return bases | {name: (mixer.title, mixer.arxiv) for name, mixer in MIXERS.items()}


def run_name(method: str, mix: str) -> str:
    """ "moco+mixco", as results and folders name it."""
    return method if mix == NO_MIXER else f"{method}+{mix}"
