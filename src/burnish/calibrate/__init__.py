"""What calibration text tells about a model: windows, drawn labels, the walk over layers, and what is added up on it.

walk = WholeModel(module, views)                         # or LayerByLayer, FromDisk, GradientsFromDisk
for some, statistics in collected(walk, text, directory, key=key):
    ...                                                  # the weights of `some` may be changed now
"""

from burnish.calibrate.collect import collect, collected
from burnish.calibrate.from_disk import FromDisk, GradientsFromDisk
from burnish.calibrate.statistics import MatrixSums, Statistics
from burnish.calibrate.walk import LayerByLayer, WholeModel
from burnish.calibrate.windows import Calibration

__all__ = [
    "Calibration",
    "FromDisk",
    "GradientsFromDisk",
    "LayerByLayer",
    "MatrixSums",
    "Statistics",
    "WholeModel",
    "collect",
    "collected",
]
