"""Training steps on a GPU that launches a whole pass at once, recorded as a CUDA graph.

A small Net's pass is some eighty kernels, each of which takes longer to launch than to run
(docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from digits.errors import EngineError
from digits.training import torch_engine

CHECKED_EACH = 1_000  # passes
TOLERANCE = 1e-3  # of a gradient's norm


class Recorded(NamedTuple):
    """A pass, the tensors that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    indices: Tensor
    places: Tensor
    mean: Tensor
    right: Tensor
    gradients: list[Tensor | None]


def _forget_recording(device: torch.device) -> None:
    """Let CUDA's random numbers be drawn again after a recording that failed."""
    fresh = torch.Generator(device).graphsafe_get_state()
    torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh)


class Steps(torch_engine.Steps):
    """Torch's, but that passes of full batches are recorded once and then replayed.

    A recording does again what was done, whatever the Net's Python would do by now; so each
    `CHECKED_EACH` passes it is compared with the Net's own.
    """

    recorded: Recorded | None = None
    passes = 0

    def _pass(self, indices: Tensor, places: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        if len(indices) != self.recipe.batch_size:
            return super()._pass(indices, places, weight)
        if self.recorded is None:
            self.recorded = self._record(indices, places)
        recorded, self.passes = self.recorded, self.passes + 1
        is_checked = self.passes % CHECKED_EACH == 0
        expected = self._gradients_of_a_trial(indices, places) if is_checked else []
        recorded.indices.copy_(indices)
        recorded.places.copy_(places)
        recorded.graph.replay()
        for parameter, gradient in zip(self.net.parameters(), recorded.gradients, strict=True):
            parameter.grad = gradient
        if is_checked and any(
            (found - wanted).norm() > TOLERANCE * wanted.norm()
            for found, wanted in zip(self._gradients(), expected, strict=True)
        ):
            raise EngineError(
                "the Net no longer computes what was recorded of it as a CUDA graph; "
                "set train.engine to torch"
            )
        return recorded.mean, recorded.right

    def _record(self, indices: Tensor, places: Tensor) -> Recorded:
        """Record a pass, which does nothing yet."""
        graph, indices, places = torch.cuda.CUDAGraph(), indices.clone(), places.clone()
        try:
            with torch.cuda.graph(graph):
                mean, right = super()._pass(indices, places, 1)
        except RuntimeError:
            _forget_recording(indices.device)
            raise
        gradients = [parameter.grad for parameter in self.net.parameters()]
        return Recorded(graph, indices, places, mean, right, gradients)

    def _gradients_of_a_trial(self, indices: Tensor, places: Tensor) -> list[Tensor]:
        """The gradients of a pass that leaves everything as it was."""
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        random = torch.cuda.get_rng_state()
        super()._pass(indices, places, 1)
        gradients = self._gradients()
        torch.cuda.set_rng_state(random)
        for buffer, before in buffers:
            buffer.copy_(before)
        return gradients

    def _gradients(self) -> list[Tensor]:
        return [one.grad for one in self.net.parameters() if one.grad is not None]
