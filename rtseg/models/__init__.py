"""Segmentation networks. One file per family, each with `build(num_classes, **options)`.

A network is an `nn.Module` that maps (N, 3, H, W) normalised RGB to logits (N, C, h, w) at its
own stride. In training mode it returns a list: the logits, then those of its auxiliary heads,
whose parameters lie under `auxiliary` and are not part of a model file.
"""

AUXILIARY_PREFIX = "auxiliary."
NO_PLUGINS = ("backbones", "layers")
"""Files that families share."""
