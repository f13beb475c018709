"""What the libraries beside us need to be imported together."""

from __future__ import annotations

import sys
from typing import Any, cast


def hide_transformers() -> None:
    """Let mmpretrain and mmdet be imported beside transformers 5. Call it before `mmdet.models` or `mmpretrain.models`.

    mmpretrain's multi-modal models derive from classes that transformers 5 no longer has, and mmdet imports
    mmpretrain where it finds it. Whether these models are imported, mmpretrain decides by the metadata of
    transformers, which are there even if its import fails: they are switched off where it notes that. From now on
    `import transformers` fails in this process, also where mmengine has imported it already.
    """
    cast(dict[str, Any], sys.modules)['transformers'] = None
    try:
        from mmpretrain.utils import dependency
    except Exception:  # the parts that need it say why it cannot be imported
        return
    dependency.WITH_MULTIMODAL = False
