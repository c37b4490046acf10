"""The 19 classes that Cityscapes evaluates, its colours and its label ids.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016; numbers
and colours as in `labels.py` of the authors' cityscapesScripts.
"""

from __future__ import annotations

from rtseg.data._pairs import Codes

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
IGNORE_INDEX = 255

# The label id of each class, in order. The other ids of 0 to 33 are void, or too rare to count.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

TRAIN_IDS = Codes.indices(len(CLASSES), IGNORE_INDEX)
"""Files of class indices."""
LABEL_IDS = Codes.of(
    # Number plates are -1, which is 255 in a file of uint8.
    {**dict.fromkeys((*range(34), 255), IGNORE_INDEX), **{v: i for i, v in enumerate(_LABEL_IDS)}},
    "label ids 0 to 33, or 255 for unlabelled",
)
"""Files of the 34 label ids."""
