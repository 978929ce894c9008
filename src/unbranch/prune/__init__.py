"""ResRep: channels that a network can do without, found in training and taken out without loss."""

from unbranch.prune.attach import Attachment, attach
from unbranch.prune.convert import Pruning, convert
from unbranch.prune.resrep import Progress, ResRep

__all__ = ["Attachment", "Progress", "Pruning", "ResRep", "attach", "convert"]
