"""Images: where they come from and how they reach the model."""

from resnet_bench.data.catalog import DATASETS, DatasetInfo
from resnet_bench.data.dataset import Dataset, DataStatus, Split, generate, load, status
from resnet_bench.data.loader import Augmentation, Draws, ResidentLoader
from resnet_bench.data.split import split_train_validation

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataStatus",
    "Dataset",
    "DatasetInfo",
    "Draws",
    "ResidentLoader",
    "Split",
    "generate",
    "load",
    "split_train_validation",
    "status",
]
