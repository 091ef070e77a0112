"""Give vLLM one more way to receive weights. vLLM calls this at its start where fastflow is installed beside it."""

from __future__ import annotations

import logging

BACKEND = "fastflow"

logger = logging.getLogger(__name__)


def register() -> None:
    """Register `--weight-transfer-config '{"backend": "fastflow"}'` with vLLM; the engine is imported when it is used.

    vLLM calls this in each of its processes, perhaps more than once. It raises nothing, since an error would keep vLLM
    from starting.
    """
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        WeightTransferEngineFactory.register_engine(
            BACKEND, "fastflow.rollout.server.transfer_engine", "FileTransferEngine"
        )
    except ValueError:
        logger.debug("the weight-transfer engine %s is registered already", BACKEND)
    except Exception as error:
        logger.debug("this vLLM takes no weights from fastflow by weight transfer: %s", error)
