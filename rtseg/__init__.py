"""rtseg: real-time video segmentation, from source to overlay."""

__version__ = "0.1.0"
