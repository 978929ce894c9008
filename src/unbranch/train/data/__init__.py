"""Images for training, one source a file: ``open_data(source)`` opens any of them."""

from unbranch.errors import CorruptImage
from unbranch.train.data.dataset import Data, ImageSet, Part
from unbranch.train.data.source import SOURCES, open_data

__all__ = ["SOURCES", "CorruptImage", "Data", "ImageSet", "Part", "open_data"]
