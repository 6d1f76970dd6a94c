"""Our pretraining as it is: `pretrain` with its defaults, and its own record of an epoch.

An epoch has as many steps as are to be timed. The first warms up; the second is recorded. Where
images are streamed a third follows, so that the readers still read ahead while the second is timed.
"""

import tempfile
from pathlib import Path

from common import read_settings, tell

from mixco.runtime.device import pick_dtype
from mixco.runtime.run_folder import read_metrics
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.training.pretrain import pretrain


def main() -> None:
    settings = read_settings(loading={"default": "packed"}, precision={"default": "auto"})
    config = PretrainConfig(
        data=DataConfig(
            data=str(settings.data / "epoch"),
            size=settings.size,
            cache=settings.data / "cache",
            loading=settings.loading,
            workers=settings.workers,
        ),
        model=ModelConfig(arch=settings.arch),
        method=MethodConfig(method=settings.method, mix=settings.mix, queue=settings.queue),
        optimisation=OptimisationConfig(
            epochs=3 if settings.loading == "streamed" else 2, batch_size=settings.batch_size
        ),
        run=RunConfig(
            out=Path(tempfile.mkdtemp(dir=settings.data)),
            device=settings.device.type,
            precision=settings.precision,
            knn_every=0,
        ),
    )
    recorded = read_metrics(pretrain(config))[1]
    figures = {
        "images_per_second": float(recorded["images_per_second"]),
        "waiting_share": float(recorded["data_wait"]),
    }
    tell(figures, settings, str(pick_dtype(settings.device, settings.precision)))


if __name__ == "__main__":
    main()
