"""Starts the processes of a training on this machine, as torchrun does, and answers for them."""

import logging
import os
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from digits import stage
from digits.errors import UserError

HERE, LOOPBACKS = "127.0.0.1", ("lo", "lo0")
ANEW = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # else a new group meets the dead one's addresses
RESTARTS = 3


def train_together(script: Path, count: int) -> None:
    """Run a script in several processes that train together, and wait for them.

    If one dies, all are started again, a few times. What goes wrong is said here, and by none of
    them. They end with this process, however it does.

    Raises:
        UserError: what one of them met, or that they died too often.
        KeyboardInterrupt: this process was asked to end.
    """
    logging.disable(logging.CRITICAL)  # torch's account of what is said here in a line
    os.environ[ANEW] = "1"
    for _, name in socket.if_nameindex():
        if name in LOOPBACKS:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    stage.lead()
    with TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid4()),
            rdzv_backend="c10d",  # which unpickles what it reads: of a file of our own
            rdzv_endpoint=str(Path(folder, "rendezvous")),
            rdzv_configs={"store_type": "file"},
            local_addr=HERE,
            max_restarts=RESTARTS,
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            elastic_launch(config, sys.executable)("-u", str(script))
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            if said := next(stage.errors_left(Path(folder)), ""):
                raise UserError(said) from error
            rank, failure = error.get_first_failure()
            how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            raise UserError(
                f"after {RESTARTS} new starts, process {rank} of {count} ended by {how} again; "
                "the next `dvc repro` goes on from the last checkpoint"
            ) from error
