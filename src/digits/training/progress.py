"""What a training shows while it goes on."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from digits import stage
from digits.training.history import Metric
from digits.training.loop import Epoch, Step


class Speed:
    """Images per second between two points of the loss curve."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None

    def metrics(self, step: Step) -> list[Metric]:
        """The rate up to this point; none at the first one."""
        now = time.perf_counter()
        last, self.last = self.last, (step.samples, now)
        if last is None:
            return []
        rate = (step.samples - last[0]) / (now - last[1])
        return [("train/images_per_second", round(rate), step.step)]


def announce(epoch: Epoch, epochs: int) -> None:
    """Print a line on an epoch that has ended."""
    validation = (
        ""
        if epoch.validation_accuracy is None or epoch.validation_loss is None
        else f"; validation loss {epoch.validation_loss:.4f}, "
        f"accuracy {epoch.validation_accuracy:.2%}"
    )
    stage.say(
        "train",
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.4f}, "
        f"accuracy {epoch.train_accuracy:.2%}{validation}",
    )


@contextmanager
def bar(images: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on a terminal; what it gives is called with the images so far, and a word."""
    with tqdm(
        total=images,
        unit=" images",
        unit_scale=True,
        desc="train",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as shown:

        def show(samples: int, text: str) -> None:
            shown.set_postfix_str(text, refresh=False)
            shown.update(samples - shown.n)

        yield show
