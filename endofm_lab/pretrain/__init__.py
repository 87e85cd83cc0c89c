"""Self-supervised pre-training. The package can be called: ``endofm_lab.pretrain(config)`` is `trainer.pretrain`.

Python sets the name of an imported package on its parent, so that the public function and its package are one name.
"""

import sys
from types import ModuleType
from typing import Any


class _Pretrain(ModuleType):
    def __call__(self, config: Any) -> Any:
        from endofm_lab.pretrain.trainer import pretrain

        return pretrain(config)


sys.modules[__name__].__class__ = _Pretrain
