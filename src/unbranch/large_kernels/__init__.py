"""Large depthwise convolutions on x86 CPUs, without the slow paths of oneDNN."""

from unbranch.large_kernels.convolution import large_conv2d
from unbranch.large_kernels.layer import LargeConv2d, accelerate_large_kernels

__all__ = ["LargeConv2d", "accelerate_large_kernels", "large_conv2d"]
