"""Features of the labelled images of a task, which several evaluations share."""

from dataclasses import dataclass

from torch import Tensor

from mixco.embeddings.features import on_one_device
from mixco.evaluation.task import Task, load_task
from mixco.runtime.device import pick_device, send
from mixco.runtime.distributed import launch_env, process_group
from mixco.runtime.errors import explain_machine_failures
from mixco.settings.commands import EvaluationConfig

REMEDY = "lower --size, or give --device cpu"
MINUTES = 30.0  # the longest wait of a process for the features of the others


@dataclass(frozen=True)
class Features:
    """Features of the labelled train and test split, and the task they belong to."""

    task: Task
    train_features: Tensor
    """float32 [N, D]; all features are on the device if they fit there, else on the CPU"""
    train_index: Tensor
    """int64 [N] on the CPU: their images in task.train"""
    test_features: Tensor
    """float32 [M, D]"""
    test_index: Tensor
    """int64 [M] on the CPU: their images in task.test"""

    @property
    def train_labels(self) -> Tensor:
        """int64 [N] in [0, classes), where the features are"""
        return send(self.task.train.labels[self.train_index], self.train_features.device)

    @property
    def test_labels(self) -> Tensor:
        """int64 [M] in [0, classes), where the features are"""
        return send(self.task.test.labels[self.test_index], self.test_features.device)

    @property
    def classes(self) -> int:
        return len(self.task.classes)


@explain_machine_failures(REMEDY)
def compute_features(config: EvaluationConfig) -> Features:
    """The task's features, computed once for all evaluations that need them.

    Under torchrun each process computes a part, and all return all features.
    """
    device = pick_device(config.device, launch_env().local_rank)
    with process_group(device, MINUTES):
        task = load_task(config)  # the first process chooses the formats for all
        backbone = task.encoder.backbone
        train, train_index = task.outputs(backbone, task.train)
        test, test_index = task.outputs(backbone, task.test)
    train, test = on_one_device(train, test)
    return Features(task, train, train_index, test, test_index)
