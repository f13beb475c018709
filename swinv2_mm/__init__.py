"""Dense prediction with Swin Transformer V2 on MMDetection and MMSegmentation.

Importing this package is what `custom_imports = dict(imports=['swinv2_mm'])` does in a config: it makes
mmcv usable without compiled operators, keeps mmengine from running code out of checkpoints, and registers the
backbones. It imports neither mmdet nor mmseg.
"""

from swinv2_mm.ops import mmcv_ext
from swinv2_mm.version import __version__

mmcv_ext.install()  # before anything can import `mmcv.ops`

from swinv2_mm.checkpoints import guard_mmengine  # noqa: E402
from swinv2_mm.models import SwinTransformerV2, SwinTransformerV2CR  # noqa: E402

guard_mmengine()

__all__ = ['SwinTransformerV2', 'SwinTransformerV2CR', '__version__']
