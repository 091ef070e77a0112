"""What vLLM calls at its start where fastflow is installed beside it: one more way to receive weights."""

from __future__ import annotations

import logging

BACKEND = "fastflow"

logger = logging.getLogger(__name__)


def register() -> None:
    """Makes `--weight-transfer-config '{"backend": "fastflow"}'` known to vLLM; nothing is imported before it is used.

    Called in every process of vLLM, perhaps more than once. Never raises, since that would keep vLLM from starting.
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
