"""The gradients of the Net on a CPU, by hand: several times as fast as autograd on small images.

The time of an epoch goes into moving activations between memory and cores, not into products.
So a batch is cut into chunks whose activations stay in one core's own cache, each core works
through its chunks alone (a process each, around single-threaded operators: nothing to join after
every operator, no interpreter lock to share, and no stall when another program takes a core), and
the batch is the *last* dimension of every activation, `[channels, y, x, N]`:

- patches, and the sums that undo them, are copies and additions of long contiguous runs;
- every layer, convolution or linear, is one matrix product `weights [out, in] @ patches [in, M]`;
- a bias is one more column of the weights against a row of ones, so its gradient comes along.

Pooling is folded into the convolutions. The first works on patches of 6x6 at stride 2: its rows
of weights are the filters at the four places of a pooling window, so pooling is a maximum of
four slices. The second works on patches 6 high and 5 wide, two rows of a window at a time. The
gradient of a maximum goes to its first place, as `max_pool2d` has it. Sums are made in a fixed
order, so the same number of workers gives the same bytes.

The textbook's products need 13.2 MFLOP an image, forward and backward; these need 15.7, because
the filters of a shared patch hold zeros.
"""

import math
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from digits.net import Net

CHUNK = 16  # images that go through the convolutions together
BLOCK = 32  # images that go through the linear layers together
AWAKE_SECONDS = 0.003  # that a process waits for another without sleeping
ORDER_BYTES = 4
LEAST_SHARE = 16  # images; below it a worker costs more than it does

SIDE, PATCH, POOLED1, POOLED2 = 28, 6, 12, 4
PIXELS, PLACES1, PLACES2 = SIDE**2, POOLED1**2, POOLED2**2
LINEAR = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
INPUTS1, INPUTS2 = PATCH * PATCH, 20 * PATCH * 5

_where_positive: Callable[..., Tensor] = torch.ops.aten.threshold_backward.grad_input


class BlockedGradients:
    """Loss and gradients of a batch; the gradients go into `net`'s parameters.

    Forks its workers; `close` ends them, and so does the end of this process, however it comes.
    Expects torch to use one thread in the calling thread too (`torch.set_num_threads(1)`).

    Args:
        net: on the CPU; its parameters stay float32.
        windows: uint8 `[N, 1, places, places, 28, 28]`, each image at all places it is moved to.
        labels: int64 `[N]`.
        precision: of the arithmetic, float32 or bfloat16; sums of gradients are float32.
        threads: how many work at once, at most.
        batch_size: the most images of a batch.
    """

    def __init__(
        self,
        net: Net,
        windows: Tensor,
        labels: Tensor,
        precision: torch.dtype,
        threads: int,
        batch_size: int,
    ) -> None:
        count = max(1, min(threads, batch_size // LEAST_SHARE))
        self.share = math.ceil(batch_size / count)
        self.windows, self.labels = windows, labels
        self.weights = _Weights(net, precision)
        self.batch = _shared(torch.empty(3, batch_size, dtype=torch.int64))
        self.own = _Worker(net, precision)
        self.others: list[_Remote] = []
        for number in range(1, count):
            self.others.append(_fork(_Worker(net, precision), number, self))
        for parameter in (*net.conv1.parameters(), *net.conv2.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        for linear, total in zip(self.weights.of_linear(), self.own.linear, strict=True):
            linear.grad = total

    @torch.no_grad()
    def __call__(self, indices: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and right answers of a batch.

        Args:
            indices: int64 `[B]`, which images.
            places: int64 `[2, B]`, to where each is moved.

        Returns:
            Mean loss in nats, float32 `[]`, and how many were right, int64 `[]`.

        Raises:
            RuntimeError: a worker is gone.
        """
        size = len(indices)
        self.weights.refresh()
        self.batch[0, :size].copy_(indices)
        self.batch[1:, :size].copy_(places)
        busy = [other for other in self.others if other.number * self.share < size]
        for other in busy:
            other.start(size)
        self.run(self.own, 0, size)
        loss, correct = self.own.loss, self.own.correct
        for other in busy:
            other.finish()
            loss, correct = loss + other.worker.loss, correct + other.worker.correct
            for total, addend in zip(self.own.sums, other.worker.sums, strict=True):
                total.add_(addend)
        self.weights.hand_over(self.own)
        return loss.clone(), correct.clone()

    def run(self, worker: "_Worker", number: int, size: int) -> None:
        """Have a worker do its share of the batch that lies ready."""
        share = slice(number * self.share, min((number + 1) * self.share, size))
        indices, y, x = self.batch[:, share]
        worker.run(self.weights, self.windows[indices, 0, y, x], self.labels[indices], size)

    def close(self) -> None:
        """End the workers."""
        while self.others:
            self.others.pop().close()


class _Remote(NamedTuple):
    """A worker in a process of its own, seen from here: told by one pipe, heard by another."""

    number: int
    worker: "_Worker"
    process: int
    orders: int
    answers: int

    def start(self, size: int) -> None:
        os.write(self.orders, size.to_bytes(ORDER_BYTES, "little"))

    def finish(self) -> None:
        if _read(self.answers) != b"+":
            raise RuntimeError("can't allocate memory: a training worker was ended")

    def close(self) -> None:
        os.close(self.orders)
        os.close(self.answers)
        os.waitpid(self.process, 0)


def _fork(worker: "_Worker", number: int, owner: BlockedGradients) -> _Remote:
    orders, to_worker = os.pipe()
    from_worker, answers = os.pipe()
    os.set_blocking(orders, False)
    os.set_blocking(from_worker, False)
    process = os.fork()
    if process:
        os.close(orders)
        os.close(answers)
        return _Remote(number, worker, process, to_worker, from_worker)
    try:
        for inherited in (to_worker, *(other.orders for other in owner.others)):
            os.close(inherited)  # so that the pipe ends when the owner does
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        while order := _read(orders):
            owner.run(worker, number, int.from_bytes(order, "little"))
            os.write(answers, b"+")
    finally:
        os._exit(0)


def _read(pipe: int) -> bytes:
    """An order or an answer; sleeps only if it is long in coming, since waking up takes longer."""
    patience = time.perf_counter() + AWAKE_SECONDS
    while time.perf_counter() < patience:
        try:
            return os.read(pipe, ORDER_BYTES)
        except BlockingIOError:
            continue
    select.select([pipe], [], [])
    return os.read(pipe, ORDER_BYTES)


def _parts(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))


def _shared(tensor: Tensor) -> Tensor:
    return tensor.share_memory_()  # type: ignore[no-untyped-call, no-any-return]


class _Weights:
    """The weights as the products want them, and the way back for their gradients."""

    def __init__(self, net: Net, precision: torch.dtype) -> None:
        self.parameters = dict(net.named_parameters())
        self.conv1 = _shared(torch.zeros(4 * 20, INPUTS1 + 1, dtype=precision))
        self.conv2 = _shared(torch.zeros(2 * 50, INPUTS2 + 1, dtype=precision))
        self.copied = precision != torch.float32
        self.linear = [
            _shared(torch.zeros_like(parameter, dtype=precision))
            if self.copied
            else _shared(parameter.detach())
            for parameter in self.of_linear()
        ]
        weight3, bias3, weight4, bias4 = self.linear
        self.linear_forth = weight3, bias3[:, None], weight4, bias4[:, None]
        self.linear_back = weight3.t(), weight4.t()
        self.conv2_back = self.conv2[:, :INPUTS2].t()
        self.filters1 = _filters1(self.conv1)
        self.filters2 = _filters2(self.conv2)
        self.scale = 1 / (255 * float(net.std))
        self.offset = 255 * float(net.mean)

    def of_linear(self) -> list[Tensor]:
        """The parameters of the two linear layers."""
        return [self.parameters[name] for name in LINEAR]

    def refresh(self) -> None:
        """Take over what the optimizer did."""
        for place in self.filters1:
            place.copy_(self.parameters["conv1.weight"][:, 0])
        for place in self.filters2:
            place.copy_(self.parameters["conv2.weight"])
        self.conv1[:, INPUTS1].view(4, 20).copy_(self.parameters["conv1.bias"])
        self.conv2[:, INPUTS2].view(2, 50).copy_(self.parameters["conv2.bias"])
        if self.copied:
            for ours, parameter in zip(self.linear, self.of_linear(), strict=True):
                ours.copy_(parameter)

    def hand_over(self, worker: "_Worker") -> None:
        """Put summed gradients into the parameters; the linear layers' are there already."""
        first = _filters1(worker.conv1)
        self._gradient("conv1.weight")[:, 0].copy_(first[0] + first[1] + first[2] + first[3])
        torch.add(*_filters2(worker.conv2), out=self._gradient("conv2.weight"))
        bias1, bias2 = worker.conv1[:, INPUTS1].view(4, 20), worker.conv2[:, INPUTS2].view(2, 50)
        torch.sum(bias1, 0, out=self._gradient("conv1.bias"))
        torch.sum(bias2, 0, out=self._gradient("conv2.bias"))

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None
        return gradient


def _filters1(matrix: Tensor) -> list[Tensor]:
    """Views `[20, 5, 5]`: conv1's filter at each place of a pooling window, in its 6x6 patch."""
    patches = matrix[:, :INPUTS1].view(2, 2, 20, PATCH, PATCH)
    return [patches[i, j, :, i : i + 5, j : j + 5] for i in (0, 1) for j in (0, 1)]


def _filters2(matrix: Tensor) -> list[Tensor]:
    """Views `[50, 20, 5, 5]`: conv2's filters in both rows of a window, in its 6x5 patch."""
    patches = matrix[:, :INPUTS2].view(2, 50, 20, PATCH, 5)
    return [patches[i, :, :, i : i + 5] for i in (0, 1)]


class _Chunk:
    """The convolutions of `n` images: activations and gradients, made once, and views of them.

    A gradient takes the place of what it is the gradient of as soon as that is not needed.

    Args:
        n: images.
        precision: of all of it.
        hidden: `[800, n]`, where the output goes.
        gradient: `[800, n]`, where the output's gradient is found.
    """

    def __init__(self, n: int, precision: torch.dtype, hidden: Tensor, gradient: Tensor) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=precision)

        self.n = n
        self.pixels = empty(PIXELS, n)
        self.patches1 = empty(INPUTS1 + 1, PLACES1 * n)
        self.patches1[INPUTS1] = 1
        self.patches1_by = self.patches1.t()
        self.patches1_to = self.patches1[:INPUTS1].view(PATCH, PATCH, POOLED1, POOLED1, n)
        self.patches1_from = self.pixels.as_strided(
            (PATCH, PATCH, POOLED1, POOLED1, n), (SIDE * n, n, 2 * SIDE * n, 2 * n, 1)
        )
        self.conv1 = empty(4 * 20, PLACES1 * n)
        window = self.conv1.view(2, 2, 20, PLACES1 * n)
        self.left1, self.right1 = window[:, 0], window[:, 1]
        self.rows1 = empty(2, 20, PLACES1 * n)
        self.upper1, self.lower1 = self.rows1
        self.columns_differ1 = empty(2, 20, PLACES1 * n)
        self.rows_differ1 = empty(20, PLACES1 * n)
        self.hidden1, self.gradient1 = empty(20, PLACES1 * n), empty(20, PLACES1 * n)

        self.patches2 = empty(INPUTS2 + 1, 2 * PLACES2 * n)
        self.patches2[INPUTS2] = 1
        self.patches2_by = self.patches2.t()
        shape2 = (20, PATCH, 5, POOLED2, 2 * POOLED2, n)
        self.patches2_to = self.patches2[:INPUTS2].view(shape2)
        self.patches2_from = self.hidden1.as_strided(
            shape2, (PLACES1 * n, POOLED1 * n, n, 2 * POOLED1 * n, n, 1)
        )
        self.conv2 = empty(2 * 50, 2 * PLACES2 * n)
        self.upper2, self.lower2 = self.conv2.view(2, 50, PLACES2, 2, n)
        self.columns2 = empty(50, PLACES2, 2, n)
        self.left2, self.right2 = self.columns2[:, :, 0], self.columns2[:, :, 1]
        self.rows_differ2 = empty(50, PLACES2, 2, n)
        self.columns_differ2 = empty(50, PLACES2, n)
        self.pooled2 = empty(50, PLACES2, n)
        self.hidden2, self.gradient2 = (
            outside.view(50, PLACES2, n) for outside in (hidden, gradient)
        )
        self.patch_gradient2 = empty(INPUTS2, 2 * PLACES2 * n)
        self.unfold2 = _unfolding(self.patch_gradient2, self.gradient1, n)

    def forward(self, weights: _Weights, images: Tensor) -> None:
        """From normalised pixels `[n, 784]` to what the first linear layer reads."""
        self.pixels.copy_(images.t())
        self.patches1_to.copy_(self.patches1_from)
        torch.mm(weights.conv1, self.patches1, out=self.conv1)
        torch.sub(self.right1, self.left1, out=self.columns_differ1)
        torch.maximum(self.left1, self.right1, out=self.rows1)
        torch.sub(self.lower1, self.upper1, out=self.rows_differ1)
        torch.maximum(self.upper1, self.lower1, out=self.hidden1).relu_()

        self.patches2_to.copy_(self.patches2_from)
        torch.mm(weights.conv2, self.patches2, out=self.conv2)
        torch.sub(self.lower2, self.upper2, out=self.rows_differ2)
        torch.maximum(self.upper2, self.lower2, out=self.columns2)
        torch.sub(self.right2, self.left2, out=self.columns_differ2)
        torch.maximum(self.left2, self.right2, out=self.pooled2)
        torch.clamp_min(self.pooled2, 0, out=self.hidden2)

    def backward(self, worker: "_Worker", weights: _Weights, keep: float) -> None:
        """Add the gradients of the weights to the sums; `keep` is 0 for a step's first chunk."""
        _where_positive(self.gradient2, self.pooled2, 0, grad_input=self.pooled2)
        _where_positive(self.pooled2, self.columns_differ2, 0, grad_input=self.right2)
        torch.sub(self.pooled2, self.right2, out=self.left2)
        _where_positive(self.columns2, self.rows_differ2, 0, grad_input=self.lower2)
        torch.sub(self.columns2, self.lower2, out=self.upper2)
        worker.add(worker.conv2, self.conv2, self.patches2_by, keep)
        torch.mm(weights.conv2_back, self.conv2, out=self.patch_gradient2)
        self.gradient1.zero_()
        for target, source in self.unfold2:
            target.add_(source)

        _where_positive(self.gradient1, self.hidden1, 0, grad_input=self.gradient1)
        _where_positive(self.gradient1, self.rows_differ1, 0, grad_input=self.lower1)
        torch.sub(self.gradient1, self.lower1, out=self.upper1)
        _where_positive(self.rows1, self.columns_differ1, 0, grad_input=self.right1)
        torch.sub(self.rows1, self.right1, out=self.left1)
        worker.add(worker.conv1, self.conv1, self.patches1_by, keep)


def _unfolding(patches: Tensor, image: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (part of the image, patch entries that add up to it) that undo the patches."""
    source = patches.view(20, 3, 2, 5, POOLED2, 2 * POOLED2, n)
    target = image.view(20, PATCH, 2, POOLED1, n)
    return [
        (target[:, i : i + 4, :, k : k + 8], source[:, i, :, k].transpose(1, 2))
        for i in range(3)
        for k in range(5)
    ]


class _Block:
    """The chunks of `n` images, and the linear layers of all of them at once."""

    def __init__(self, n: int, classes: int, precision: torch.dtype) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=precision)

        self.hidden2, self.gradient2 = empty(50 * PLACES2, n), empty(50 * PLACES2, n)
        self.hidden2_by = self.hidden2.t()
        self.hidden3, self.gradient3, self.masked3 = empty(500, n), empty(500, n), empty(500, n)
        self.hidden3_by = self.hidden3.t()
        self.target = torch.empty(classes, n)
        self.classes = torch.arange(classes)[:, None]
        self.chunks = [
            _Chunk(hidden.shape[1], precision, hidden, gradient)
            for hidden, gradient in zip(
                torch.split(self.hidden2, CHUNK, 1),
                torch.split(self.gradient2, CHUNK, 1),
                strict=True,
            )
        ]

    def run(
        self,
        worker: "_Worker",
        weights: _Weights,
        images: Tensor,
        labels: Tensor,
        batch: int,
        first: bool,
    ) -> None:
        """Loss, right answers and gradients of these images, added to the worker's."""
        pixels = images.to(worker.precision).sub_(weights.offset).mul_(weights.scale)
        for chunk, some in zip(self.chunks, torch.split(pixels, CHUNK), strict=True):
            chunk.forward(weights, some)
        weight3, bias3, weight4, bias4 = weights.linear_forth
        torch.addmm(bias3, weight3, self.hidden2, out=self.hidden3).relu_()
        logits = torch.addmm(bias4, weight4, self.hidden3)
        log_probabilities = logits.float().log_softmax(0)
        worker.correct += (log_probabilities.argmax(0) == labels).sum()
        torch.eq(labels, self.classes, out=self.target)
        worker.loss -= torch.dot(log_probabilities.view(-1), self.target.view(-1))
        gradient = log_probabilities.exp_().sub_(self.target).mul_(1 / batch).to(worker.precision)

        keep = float(not first)
        back3, back4 = weights.linear_back
        sum3, bias3, sum4, bias4 = worker.linear
        worker.add(sum4, gradient, self.hidden3_by, keep)
        bias4.mul_(keep).add_(gradient.sum(1))
        torch.mm(back4, gradient, out=self.gradient3)
        _where_positive(self.gradient3, self.hidden3, 0, grad_input=self.masked3)
        worker.add(sum3, self.masked3, self.hidden2_by, keep)
        bias3.mul_(keep).add_(self.masked3.sum(1))
        torch.mm(back3, self.masked3, out=self.gradient2)
        for number, chunk in enumerate(self.chunks):
            chunk.backward(worker, weights, float(number > 0 or not first))


class _Worker:
    """One core's share of a step: works through blocks, sums their gradients."""

    def __init__(self, net: Net, precision: torch.dtype) -> None:
        self.precision = precision
        self.classes = net.fc2.out_features
        self.blocks: dict[int, _Block] = {}
        self.conv1 = _shared(torch.zeros(4 * 20, INPUTS1 + 1))
        self.conv2 = _shared(torch.zeros(2 * 50, INPUTS2 + 1))
        linear = (*net.fc1.parameters(), *net.fc2.parameters())
        self.linear = [_shared(torch.zeros_like(parameter)) for parameter in linear]
        self.sums = [self.conv1, self.conv2, *self.linear]
        self.loss = _shared(torch.zeros(()))
        self.correct = _shared(torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def run(self, weights: _Weights, images: Tensor, labels: Tensor, batch: int) -> None:
        """Loss, right answers and summed gradients of these images' part of a batch's mean."""
        self.loss.zero_()
        self.correct.zero_()
        images = images.view(-1, PIXELS)
        for number, (some, theirs) in enumerate(_parts(images, labels, BLOCK)):
            self._block(len(theirs)).run(self, weights, some, theirs, batch, number == 0)
        self.loss /= batch

    def add(self, total: Tensor, left: Tensor, right: Tensor, keep: float) -> None:
        """`total = keep * total + left @ right`, the sum in float32."""
        if self.precision == torch.float32:
            total.addmm_(left, right, beta=keep)
        else:
            total.mul_(keep).add_(left @ right)

    def _block(self, n: int) -> _Block:
        if n not in self.blocks:
            self.blocks[n] = _Block(n, self.classes, self.precision)
        return self.blocks[n]
