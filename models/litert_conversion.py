"""The traced graphs as .tflite, by litert-torch; needs the extra models-litert.

The same list of ATen operators that becomes step.onnx is lowered here, so a device with LiteRT takes the same
step. Integers become 32 bits wide: the labels, too.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from models.errors import ExportError

DISTRIBUTION = "litert-torch"


def check_installed() -> None:
    """Refuse to begin without the converter.

    Raises:
        ExportError: it is not installed.
    """
    if importlib.util.find_spec("litert_torch") is None:
        raise ExportError(
            f"the engine litert needs {DISTRIBUTION}, which is not installed",
            "pip install 'graftwork[models,models-litert]', best in an environment of its own",
        )


class Named(nn.Module):
    """A module whose inputs and outputs carry names, which become those of the .tflite signature."""

    def __init__(self, module: nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.output_names = module, tuple(output_names)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Call the module with the inputs in the order in which they were given."""
        outputs = self.module(*inputs.values())
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return dict(zip(self.output_names, outputs, strict=True))


def to_litert(module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> bytes:
    """Convert a module of plain operators.

    Args:
        module: static control flow only; its shapes become those of `inputs`.
        inputs: example inputs by name, in order.
        output_names: names of the outputs, in order.

    Returns:
        A .tflite file with one signature of these names.

    Raises:
        ExportError: the converter is not installed, or an operator has no counterpart in TFLite.
    """
    check_installed()
    shown = ", ".join(output_names)
    try:
        with _quiet(), torch.no_grad():
            import litert_torch  # noqa: PLC0415 - takes seconds, and needs the extra

            named = Named(_with_plain_convolutions(module), output_names)
            converted = litert_torch.convert(named.eval(), sample_kwargs=dict(inputs))
            content: bytes = converted.model_content()
    except Exception as error:  # the converter raises all kinds, and long texts
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(
            f"{DISTRIBUTION} cannot convert the graph of {shown}: {reason}",
            "leave out --engine litert, or replace the operator that it names",
        ) from error
    return content


def _with_plain_convolutions(module: nn.Module) -> nn.Module:
    """Copy a traced module with every convolution spelt as the converter can lower it."""
    copied = copy.deepcopy(module)
    for graph_module in copied.modules():
        if isinstance(graph_module, fx.GraphModule):
            for node in graph_module.graph.nodes:
                if node.target == torch.ops.aten.convolution.default:
                    node.target = convolution
            graph_module.recompile()
    return copied


def convolution(  # noqa: PLR0917 - the operator's signature
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Compute `aten.convolution` without what TFLite lacks: a transposed convolution with dilation.

    Such a one, from the backward pass of a dilated convolution, is an ordinary convolution with the kernel
    turned round over the input with zeros in between.
    """
    if not transposed or groups != 1 or max(dilation) == 1:
        plain: Tensor = torch.ops.aten.convolution.default(
            value, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )
        return plain
    dimensions = range(2, value.dim())
    for i in dimensions:
        reach = dilation[i - 2] * (weight.shape[i] - 1)
        spread = _with_zeros_between(value.movedim(i, -1), stride[i - 2])
        margins = (reach - padding[i - 2], reach - padding[i - 2] + output_padding[i - 2])
        value = functional.pad(spread, margins).movedim(-1, i)
    ones, zeros = [1] * len(dimensions), [0] * len(dimensions)
    turned = weight.transpose(0, 1).flip(list(dimensions))
    result: Tensor = torch.ops.aten.convolution.default(
        value, turned, bias, ones, zeros, dilation, False, zeros, 1
    )
    return result


def _with_zeros_between(value: Tensor, step: int) -> Tensor:
    """Put step - 1 zeros between the entries of the last dimension."""
    if step == 1:
        return value
    count = value.shape[-1]
    return functional.pad(value[..., None], (0, step - 1)).flatten(-2)[..., : (count - 1) * step + 1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress, deprecations and the compiler's notes, written past Python, off the user's screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    kept = os.dup(2)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123 - os.devnull is no path of ours
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            os.dup2(nowhere.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(disabled)
