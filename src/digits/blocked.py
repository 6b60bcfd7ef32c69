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
import signal
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from digits.net import Net

CHUNK = 32  # images; their activations fill about 2 MB
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
        precision: of the arithmetic, float32 or bfloat16; sums of gradients are float32.
        threads: how many work at once, at most.
        batch_size: the most images of a batch.
    """

    def __init__(self, net: Net, precision: torch.dtype, threads: int, batch_size: int) -> None:
        count = max(1, min(threads, batch_size // LEAST_SHARE))
        self.share = math.ceil(batch_size / count)
        self.weights = _Weights(net, precision)
        self.batch = _Batch(
            _shared(torch.empty(batch_size, 1, SIDE, SIDE, dtype=torch.uint8)),
            _shared(torch.empty(batch_size, dtype=torch.int64)),
        )
        self.own = _Worker(net, precision)
        self.others: list[_Remote] = []
        for number in range(1, count):
            self.others.append(_fork(_Worker(net, precision), number, self))
        for parameter in (*net.conv1.parameters(), *net.conv2.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        for linear, total in zip(self.weights.of_linear(), self.own.linear, strict=True):
            linear.grad = total

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and right answers of a batch.

        Args:
            images: uint8 `[N, 1, 28, 28]`.
            labels: int64 `[N]`.

        Returns:
            Mean loss in nats, float32 `[]`, and how many were right, int64 `[]`.

        Raises:
            RuntimeError: a worker is gone.
        """
        size = len(labels)
        self.weights.refresh()
        self.batch.images[:size].copy_(images)
        self.batch.labels[:size].copy_(labels)
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
        part = slice(number * self.share, min((number + 1) * self.share, size))
        worker.run(self.weights, self.batch.images[part], self.batch.labels[part], size)

    def close(self) -> None:
        """End the workers."""
        while self.others:
            self.others.pop().close()


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor


class _Remote(NamedTuple):
    """A worker in a process of its own, seen from here: told by one pipe, heard by another."""

    number: int
    worker: "_Worker"
    process: int
    orders: int
    answers: int

    def start(self, size: int) -> None:
        os.write(self.orders, size.to_bytes(4, "little"))

    def finish(self) -> None:
        if os.read(self.answers, 1) != b"+":
            raise RuntimeError("can't allocate memory: a training worker was ended")

    def close(self) -> None:
        os.close(self.orders)
        os.close(self.answers)
        os.waitpid(self.process, 0)


def _fork(worker: "_Worker", number: int, owner: BlockedGradients) -> _Remote:
    orders, to_worker = os.pipe()
    from_worker, answers = os.pipe()
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
        while order := os.read(orders, 4):
            owner.run(worker, number, int.from_bytes(order, "little"))
            os.write(answers, b"+")
    finally:
        os._exit(0)


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
        first = _filters1(worker.conv1.t())
        self._gradient("conv1.weight")[:, 0].copy_(first[0] + first[1] + first[2] + first[3])
        torch.add(*_filters2(worker.conv2), out=self._gradient("conv2.weight"))
        bias1, bias2 = worker.conv1[INPUTS1].view(4, 20), worker.conv2[:, INPUTS2].view(2, 50)
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


class _Buffers:
    """Activations and gradients of a chunk of `n` images, made once, and views of them.

    A gradient takes the place of what it is the gradient of as soon as that is not needed.
    """

    def __init__(self, n: int, classes: int, precision: torch.dtype) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=precision)

        self.pixels = empty(PIXELS, n)
        self.patches1 = empty(INPUTS1 + 1, PLACES1 * n)
        self.patches1[INPUTS1] = 1
        self.patches1_to = self.patches1[:INPUTS1].view(PATCH, PATCH, POOLED1, POOLED1, n)
        self.patches1_from = self.pixels.as_strided(
            (PATCH, PATCH, POOLED1, POOLED1, n), (SIDE * n, n, 2 * SIDE * n, 2 * n, 1)
        )
        self.conv1 = empty(4 * 20, PLACES1 * n)
        self.rows1 = empty(2, 20, PLACES1 * n)
        self.columns_differ1 = empty(2, 20, PLACES1 * n)
        self.rows_differ1 = empty(20, PLACES1 * n)
        self.hidden1, self.gradient1 = empty(20, PLACES1 * n), empty(20, PLACES1 * n)

        self.patches2 = empty(INPUTS2 + 1, 2 * PLACES2 * n)
        self.patches2[INPUTS2] = 1
        shape2 = (20, PATCH, 5, POOLED2, 2 * POOLED2, n)
        self.patches2_to = self.patches2[:INPUTS2].view(shape2)
        self.patches2_from = self.hidden1.as_strided(
            shape2, (PLACES1 * n, POOLED1 * n, n, 2 * POOLED1 * n, n, 1)
        )
        self.conv2 = empty(2 * 50, 2 * PLACES2 * n)
        self.columns2 = empty(50, PLACES2, 2, n)
        self.rows_differ2 = empty(50, PLACES2, 2, n)
        self.columns_differ2 = empty(50, PLACES2, n)
        self.hidden2, self.gradient2 = empty(50, PLACES2, n), empty(50, PLACES2, n)
        self.patch_gradient2 = empty(INPUTS2, 2 * PLACES2 * n)
        self.unfold2 = _unfolding(self.patch_gradient2, self.gradient1, n)

        self.hidden3, self.gradient3, self.masked3 = empty(500, n), empty(500, n), empty(500, n)
        self.target = torch.empty(classes, n)
        self.classes = torch.arange(classes)[:, None]


def _unfolding(patches: Tensor, image: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (part of the image, patch entries that add up to it) that undo the patches."""
    source = patches.view(20, 3, 2, 5, POOLED2, 2 * POOLED2, n)
    target = image.view(20, PATCH, 2, POOLED1, n)
    return [
        (target[:, i : i + 4, :, k : k + 8], source[:, i, :, k].transpose(1, 2))
        for i in range(3)
        for k in range(5)
    ]


class _Worker:
    """One core's share of a step: works through chunks, sums their gradients."""

    def __init__(self, net: Net, precision: torch.dtype) -> None:
        self.precision = precision
        self.classes = net.fc2.out_features
        self.buffers: dict[int, _Buffers] = {}
        self.conv1 = _shared(torch.zeros(INPUTS1 + 1, 4 * 20))
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
        for number, (some, theirs) in enumerate(_parts(images, labels, CHUNK)):
            here = self._buffers(len(theirs))
            log_probabilities = self._forward(here, weights, some)
            self.correct += (log_probabilities.argmax(0) == theirs).sum()
            torch.eq(theirs, here.classes, out=here.target)
            self.loss -= torch.dot(log_probabilities.view(-1), here.target.view(-1))
            gradient = log_probabilities.exp_().sub_(here.target).mul_(1 / batch)
            self._backward(here, weights, gradient.to(self.precision), keep=float(number > 0))
        self.loss /= batch

    def _buffers(self, n: int) -> _Buffers:
        if n not in self.buffers:
            self.buffers[n] = _Buffers(n, self.classes, self.precision)
        return self.buffers[n]

    def _forward(self, here: _Buffers, weights: _Weights, images: Tensor) -> Tensor:
        n = len(images)
        here.pixels.copy_(images.view(n, PIXELS).t())
        here.pixels.sub_(weights.offset).mul_(weights.scale)
        here.patches1_to.copy_(here.patches1_from)
        torch.mm(weights.conv1, here.patches1, out=here.conv1)
        window = here.conv1.view(2, 2, 20, PLACES1 * n)
        left, right, rows = window[:, 0], window[:, 1], here.rows1
        torch.sub(right, left, out=here.columns_differ1)
        torch.maximum(left, right, out=rows)
        torch.sub(rows[1], rows[0], out=here.rows_differ1)
        torch.maximum(rows[0], rows[1], out=here.hidden1).relu_()

        here.patches2_to.copy_(here.patches2_from)
        torch.mm(weights.conv2, here.patches2, out=here.conv2)
        window, columns = here.conv2.view(2, 50, PLACES2, 2, n), here.columns2
        torch.sub(window[1], window[0], out=here.rows_differ2)
        torch.maximum(window[0], window[1], out=columns)
        torch.sub(columns[:, :, 1], columns[:, :, 0], out=here.columns_differ2)
        torch.maximum(columns[:, :, 0], columns[:, :, 1], out=here.hidden2).relu_()

        weight3, bias3, weight4, bias4 = weights.linear
        hidden2 = here.hidden2.view(800, n)
        torch.addmm(bias3[:, None], weight3, hidden2, out=here.hidden3).relu_()
        return torch.addmm(bias4[:, None], weight4, here.hidden3).float().log_softmax(0)

    def _backward(self, here: _Buffers, weights: _Weights, gradient: Tensor, keep: float) -> None:
        """Add a chunk's gradients to the sums; `keep` is 0 for a step's first chunk, then 1."""
        n = gradient.shape[1]
        weight3, _, weight4, _ = weights.linear
        sum3, bias3, sum4, bias4 = self.linear
        self._add(sum4, gradient, here.hidden3.t(), keep)
        bias4.mul_(keep).add_(gradient.sum(1))
        torch.mm(weight4.t(), gradient, out=here.gradient3)
        _where_positive(here.gradient3, here.hidden3, 0, grad_input=here.masked3)
        self._add(sum3, here.masked3, here.hidden2.view(800, n).t(), keep)
        bias3.mul_(keep).add_(here.masked3.sum(1))
        torch.mm(weight3.t(), here.masked3, out=here.gradient2.view(800, n))

        gradient2, columns = here.gradient2, here.columns2
        window = here.conv2.view(2, 50, PLACES2, 2, n)
        _where_positive(gradient2, here.hidden2, 0, grad_input=gradient2)
        _where_positive(gradient2, here.columns_differ2, 0, grad_input=columns[:, :, 1])
        torch.sub(gradient2, columns[:, :, 1], out=columns[:, :, 0])
        _where_positive(columns, here.rows_differ2, 0, grad_input=window[1])
        torch.sub(columns, window[1], out=window[0])
        self._add(self.conv2, here.conv2, here.patches2.t(), keep)
        torch.mm(weights.conv2[:, :INPUTS2].t(), here.conv2, out=here.patch_gradient2)
        here.gradient1.zero_()
        for target, source in here.unfold2:
            target.add_(source)

        gradient1, rows = here.gradient1, here.rows1
        window = here.conv1.view(2, 2, 20, PLACES1 * n)
        _where_positive(gradient1, here.hidden1, 0, grad_input=gradient1)
        _where_positive(gradient1, here.rows_differ1, 0, grad_input=rows[1])
        torch.sub(gradient1, rows[1], out=rows[0])
        _where_positive(rows, here.columns_differ1, 0, grad_input=window[:, 1])
        torch.sub(rows, window[:, 1], out=window[:, 0])
        self._add(self.conv1, here.patches1, here.conv1.t(), keep)

    def _add(self, total: Tensor, left: Tensor, right: Tensor, keep: float) -> None:
        """`total = keep * total + left @ right`, the sum in float32."""
        if self.precision == torch.float32:
            total.addmm_(left, right, beta=keep)
        else:
            total.mul_(keep).add_(left @ right)
