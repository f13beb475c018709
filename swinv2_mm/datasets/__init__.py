"""The generated set of shapes that the quickstarts train on; it needs numpy and OpenCV, nothing else."""

from swinv2_mm.datasets.shape_scene import SHAPE_CLASSES
from swinv2_mm.datasets.shapes import generate_shapes

__all__ = ['SHAPE_CLASSES', 'generate_shapes']
