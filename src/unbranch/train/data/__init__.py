"""Images for training, one source a file: ``open_data(source)`` opens any of them."""

from unbranch.errors import CorruptImage
from unbranch.train.data.dataset import Data, ImageSet, Part
from unbranch.train.data.source import SOURCES, open_data
from unbranch.train.data.tensors import DATASETS, Images, load

__all__ = ["DATASETS", "SOURCES", "CorruptImage", "Data", "ImageSet", "Images", "Part", "load", "open_data"]
