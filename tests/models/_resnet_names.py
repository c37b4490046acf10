"""Our keys of a ResNet as torchvision and those after it publish them."""

from __future__ import annotations

import re


def published_key(ours: str, prefix: str = "backbone.") -> str:
    """`backbone.stages.0.1.conv2.1.bias` is torchvision's `backbone.layer1.1.bn2.bias`."""
    parts = ours.removeprefix("backbone.").split(".")
    if parts[0] == "stem":
        return f"{prefix}{'conv' if parts[2] == '0' else 'bn'}{int(parts[1]) + 1}.{parts[-1]}"
    _, stage, block, layer, index, name = parts
    at = f"{prefix}layer{int(stage) + 1}.{block}"
    if layer == "shortcut":
        return f"{at}.downsample.{index}.{name}"
    kind = "conv" if index == "0" else "bn"
    return f"{at}.{re.sub('conv', kind, layer)}.{name}"
