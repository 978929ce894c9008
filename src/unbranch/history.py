"""Old names of ``unbranch.provenance``."""

from unbranch.deprecation import renamed_names
from unbranch.provenance import Provenance as History  # which pickles of version 0.1 refer to

__all__ = ["History"]

__getattr__ = renamed_names(
    __name__,
    {
        "history_of": "unbranch.provenance.provenance_of",
        "replayed": "unbranch.provenance.replay",
        "replays": "unbranch.provenance.register_replay",
        "set_history": "unbranch.provenance.set_provenance",
        "with_step": "unbranch.provenance.record_transform",
    },
)
