"""Images for training: ``open_data(source)`` opens a data set, a folder, or shards; one module for each source."""

from unbranch.deprecation import renamed_names
from unbranch.errors import CorruptImage
from unbranch.train.data.dataset import Data, ImageSet, ImageSubset
from unbranch.train.data.source import SOURCES, open_data

__all__ = ["SOURCES", "CorruptImage", "Data", "ImageSet", "ImageSubset", "open_data"]

__getattr__ = renamed_names(__name__, {"Part": "ImageSubset"})
