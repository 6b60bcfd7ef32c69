"""The machine's load while a training runs, under the names of MLflow's system metrics."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from splice.outbox import Point, Training

SECONDS = 2.0
MEGABYTE = 1e6


@contextmanager
def noted(journal: Training, seconds: float = SECONDS) -> Iterator[None]:
    """Note the load in a journal every few seconds."""
    stop = threading.Event()

    def watch() -> None:
        psutil.cpu_percent()  # a thread's first call only starts its measurement
        while not stop.wait(seconds):
            journal.points(load(journal.next_step("system/cpu_utilization_percentage")))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def load(step: int) -> list[Point]:
    """CPU in percent, memory in percent and megabytes, of NVIDIA GPUs too where torch uses one."""
    memory = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_percentage": memory.percent,
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "process_memory_usage_megabytes": own / MEGABYTE,
        **_gpu_load(),
    }
    return [(f"system/{name}", round(value, 1), step) for name, value in values.items()]


def _gpu_load() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"gpu_{index}_memory_usage_percentage"] = 100 * (1 - free / total)
        values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / MEGABYTE
    return values
