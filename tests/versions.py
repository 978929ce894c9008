"""Print which Python and which versions of PyTorch, torchvision and timm the tests run with: ``-m tests.versions``."""

import platform
import sys
from importlib.metadata import version

if __name__ == "__main__":
    libraries = " / ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    sys.stdout.write(f"Python {platform.python_version()} / {libraries}\n")
