"""A masked perceptron whose units are sorted by degree, so that sampling uses each weight block once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.mlp import activation_of

__all__ = ["Incremental", "MaskedMLP"]


class MaskedMLP(nn.Module):
    r"""A perceptron in which the outputs of position i see the inputs of positions < i and the context only.

    Hidden units have a degree i and see what is known at step i: context, inputs of positions < i and units of lower
    or equal degree. Units are sorted by degree, hence every row of every weight sees a prefix of its columns, and
    sampling works through the matrices once: step i computes the units of degree i and the outputs of position i from
    views of the weights (`start`), with fewer multiplications in total than one dense pass.

    Arguments:
        inputs: number of input rows of each position.
        outputs: groups (parameters, positions): the output is, group after group, of shape
            (parameters x len(positions), rows), with the parameter as the slower index.
        context: number of context rows.
        hidden: widths; each must be at least the number of degrees (len(inputs), one less without context).

    Source: MADE: Masked Autoencoder for Distribution Estimation, Germain et al. 2015, arXiv 1502.03509.

    >>> network = MaskedMLP([1, 1], [(3, (0, 1))], context=2, hidden=(8,))
    >>> x, context = torch.randn(2, 5), torch.randn(2, 5)
    >>> full = network(x, context).view(3, 2, 5)
    >>> steps = network.start(context, rows=5)
    >>> first, second = steps.step(0), steps.step(1, x[:1])
    >>> torch.allclose(full, torch.cat([first, second], 1))
    True
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[tuple[int, Sequence[int]]],
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        scale: float = 1e-2,
    ) -> None:
        super().__init__()
        positions = len(inputs)
        lowest = 0 if context else 1
        degrees = positions - lowest
        for width in hidden:
            if width < degrees:
                raise UserError(
                    f"a hidden layer of width {width} cannot serve {positions} features in sequence; "
                    f"give a width of at least {degrees}"
                )
        self.positions, self.context = positions, context
        self.activation, self.scale = activation, scale
        self._activate = activation_of(activation)
        # prefixes[k][i]: how many columns of level k are known at step i (level 0: the inputs of positions < i)
        prefixes = [[sum(inputs[:i]) for i in range(positions)]]
        row_degrees = []
        for width in hidden if degrees else ():
            unit_degrees = [lowest + unit * degrees // width for unit in range(width)]
            row_degrees.append(unit_degrees)
            prefixes.append([sum(degree <= i for degree in unit_degrees) for i in range(positions)])
        output_degrees: list[int] = []
        self._rows: dict[int, slice] = {}
        for parameters, members in outputs:
            start, count = len(output_degrees), len(members)
            for place, position in enumerate(members):
                self._rows[position] = slice(start + place, start + parameters * count, count)
            output_degrees += list(members) * parameters
        row_degrees.append(output_degrees)
        self._prefixes = prefixes
        self._fans = [[prefixes[level][degree] for degree in row] for level, row in enumerate(row_degrees)]
        known = sum(inputs[:-1])  # nothing sees the last position
        columns = [known, *hidden] if degrees else [known]
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(len(row), columns[k])) for k, row in enumerate(row_degrees)])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(len(row))) for row in row_degrees])
        self.context_weight = nn.Parameter(torch.empty(len(row_degrees[0]), context)) if context else None
        for level, fans in enumerate(self._fans):
            allowed = torch.arange(columns[level]) < torch.tensor(fans).unsqueeze(1)
            self.register_buffer(f"mask{level}", allowed.to(torch.get_default_dtype()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(number of inputs that a row sees); the last layer is smaller by `scale`."""
        with torch.no_grad():
            for level, fans in enumerate(self._fans):
                extra = self.context if level == 0 else 0
                limit = torch.tensor([1 / math.sqrt(max(fan + extra, 1)) for fan in fans], device=self.weights[level].device)
                scale = self.scale if level == len(self._fans) - 1 else 1.0
                affected: list[Tensor] = [self.weights[level], self.biases[level].unsqueeze(1)]
                if level == 0 and self.context_weight is not None:
                    affected.append(self.context_weight)
                for tensor in affected:
                    tensor.copy_(nn.init.uniform_(torch.empty_like(tensor), -1, 1) * limit.unsqueeze(1) * scale)

    def extra_repr(self) -> str:
        sizes = [weight.shape[0] for weight in self.weights]
        return f"{self.positions} positions, context {self.context} -> {' -> '.join(map(str, sizes))}, {self.activation}"

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs of all positions in one dense pass. The input rows of the last position are not looked at."""
        columns = inputs[: self.weights[0].shape[1]].to(self.weights[0].dtype)
        bias = self._first_bias(context)
        last = len(self.weights) - 1
        for level, weight in enumerate(self.weights):
            columns = torch.addmm(bias, weight * getattr(self, f"mask{level}"), columns)
            if level < last:
                columns = self._activate(columns)
                bias = self.biases[level + 1].unsqueeze(1)
        return columns

    def start(self, context: Tensor | None, rows: int) -> Incremental:
        """Begin a pass position by position."""
        return Incremental(self, context, rows)

    def _first_bias(self, context: Tensor | None) -> Tensor:
        bias = self.biases[0].unsqueeze(1)
        if self.context_weight is None or context is None:
            return bias
        return torch.addmm(bias, self.context_weight, context.to(self.context_weight.dtype))


class Incremental:
    """One pass through a `MaskedMLP`, position by position."""

    def __init__(self, network: MaskedMLP, context: Tensor | None, rows: int) -> None:
        self.network = network
        self._first_bias = network._first_bias(context)
        self._levels = [_Columns(weight.shape[1], rows) for weight in network.weights]

    def step(self, position: int, previous: Tensor | None = None) -> Tensor:
        """Outputs of one position, (parameters, 1, rows), given the input rows of the position before.

        Positions must be visited in order 0, 1, ...
        """
        network = self.network
        if previous is not None:
            self._levels[0].append(previous.to(network.weights[0].dtype))
        last = len(network.weights) - 1
        for level, known, fresh in self._hidden(position):
            product = self._product(level, fresh, known)
            self._levels[level + 1].append(network._activate(product))
        return self._product(last, network._rows[position], network._prefixes[last][position]).unsqueeze(1)

    def _hidden(self, position: int) -> Iterator[tuple[int, int, slice]]:
        prefixes = self.network._prefixes
        for level in range(len(prefixes) - 1):
            start, stop = prefixes[level + 1][position - 1] if position else 0, prefixes[level + 1][position]
            if stop > start:
                yield level, prefixes[level][position], slice(start, stop)

    def _product(self, level: int, rows: slice, known: int) -> Tensor:
        bias = self._first_bias if level == 0 else self.network.biases[level].unsqueeze(1)
        columns = self._levels[level].known(known)
        bias = bias[rows]
        if columns is None:
            return bias.expand(-1, self._levels[level].rows)
        return torch.addmm(bias, self.network.weights[level][rows, :known], columns)


class _Columns:
    """Growing columns: a buffer that is written in place, or a list where autograd needs every state."""

    def __init__(self, capacity: int, rows: int) -> None:
        self.capacity, self.rows, self.filled = capacity, rows, 0
        self._blocks: list[Tensor] = []
        self._buffer: Tensor | None = None
        transformed = torch._C._functorch.peek_interpreter_stack() is not None  # vmap: some blocks are batched, some not
        self._in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed)

    def append(self, block: Tensor) -> None:
        if not self._in_place:
            self._blocks.append(block)
            return
        if self._buffer is None:
            self._buffer = block.new_empty(self.capacity, self.rows)
        self._buffer[self.filled : self.filled + block.shape[0]] = block
        self.filled += block.shape[0]

    def known(self, count: int) -> Tensor | None:
        if count == 0:
            return None
        if self._buffer is not None:
            return self._buffer[:count]
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]  # the joined columns replace their parts: one copy each step
        return self._blocks[0]
