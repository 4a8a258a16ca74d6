"""Pre-training of the backbone on a fleet's source devices, with PyTorch Lightning.

The epoch that did best on the held-out windows is kept. Nothing is written: no logs, no checkpoints.
"""

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from torch import Tensor
from torch.nn import functional

from models.augmentation import Variation, default_variation
from models.backbones import AUTO, Backbone, choose
from models.errors import TrainingError
from models.fleet_data import SourceDevices, SourceWindows, read_fleet
from protocol.input_schema import InputSchema, WindowSpec

EPOCHS = 30
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A backbone, what it takes in and how well it does."""

    backbone: Backbone
    """In evaluation mode."""
    schema: InputSchema
    window: WindowSpec
    metrics: dict[str, float]
    windows: Tensor
    """Some held-out windows or pictures, float32 [n, *input_shape], to measure parity on."""
    source: SourceWindows
    """All the labelled windows, to measure what an int8 prefix costs."""


class Pretraining(pl.LightningModule):
    """Cross-entropy on augmented windows; keeps the best epoch's weights."""

    def __init__(self, backbone: Backbone, augmentation: Variation, steps: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.augmentation = augmentation
        self.steps = steps
        self.random = torch.Generator().manual_seed(seed)
        self.best: dict[str, float] = {}
        self.best_rank = (-math.inf, -math.inf)
        self.best_state = copy.deepcopy(backbone.state_dict())
        self._held: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Return the loss of one augmented batch."""
        x, y = batch
        logits = self.backbone(self.augmentation(x, self.backbone.deviation, self.random))
        return _objective(logits, y)

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Keep the logits of one held-out batch."""
        x, y = batch
        self._held.append((self.backbone(x), y))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights when they do better than before on the held-out windows."""
        logits, labels = (torch.cat(part) for part in zip(*self._held, strict=True))
        self._held.clear()
        metrics = evaluate(logits, labels)
        self.log("held_out", metrics["held_out_balanced_accuracy"], prog_bar=True)
        # On easy data many epochs are equally accurate; the training objective decides between them. Plain
        # cross-entropy would not do: it prefers early epochs, before smoothed labels bound the confidence.
        rank = metrics["held_out_balanced_accuracy"], -float(_objective(logits, labels))
        if rank > self.best_rank:
            self.best_rank = rank
            self.best = metrics | {"best_epoch": float(self.current_epoch + 1)}
            self.best_state = copy.deepcopy(self.backbone.state_dict())

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up and a cosine decay over all the steps."""
        optimizer = torch.optim.AdamW(self.backbone.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        warm_up = max(1, self.steps // 10)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrain(
    fleet_dir: Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    batch: int = 64,
    held_out: float = 0.2,
    backbone: str = AUTO,
    augmentation: Variation | None = None,
    progress: bool = False,
    normalisation: str | None = None,
) -> Pretrained:
    """Train a backbone on the labelled windows or pictures of a fleet's source devices.

    Args:
        fleet_dir: holds fleet.toml and one folder of recordings or pictures per device.
        seed: of the weights, the batches and the augmentation.
        epochs: passes over the source windows.
        batch: windows per step.
        held_out: share of the windows, the last in time, to choose the epoch by.
        backbone: one of BACKBONES; "auto": what suits the fleet's data.
        augmentation: how windows are varied; None: what suits the backbone.
        progress: show a progress bar.
        normalisation: one of NORMALISATIONS, or "none", in place of what fleet.toml says.

    Raises:
        TrainingError: the fleet's data are malformed or not enough.
        AdapterError: no such backbone, or it does not fit the fleet's data.
    """
    if epochs < 1 or batch < 2:
        raise TrainingError(f"expected at least 1 epoch and batches of 2, got {epochs} and {batch}")
    fleet = read_fleet(fleet_dir)
    kind = choose(backbone, fleet.schema, fleet.window)
    data = SourceDevices(fleet_dir, batch=batch, held_out=held_out, seed=seed, normalisation=normalisation)
    trained_on, held = len(data.windows.y), len(data.windows.held_y)
    if trained_on < 2 or not held:
        raise TrainingError(
            f"expected windows to train on and to hold out, got {trained_on} and {held}",
            "record more data, or use shorter windows or a smaller stride",
        )
    with torch.random.fork_rng(devices=[]), _one_thread(), warnings.catch_warnings():
        # Lightning advises worker processes and loggers, neither of which a run of a minute needs.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network = kind.build(fleet.schema, fleet.window)
        network.set_normalisation(*data.normalisation())
        steps = epochs * len(data.train_dataloader())
        varied = augmentation or default_variation(kind.NAME, fleet.schema.channels)
        training = Pretraining(network, varied, steps, seed)
        _trainer(epochs, progress=progress).fit(training, datamodule=data)
    network.load_state_dict(training.best_state)
    counts = {
        "source_windows": float(trained_on),
        "held_out_windows": float(held),
    }
    return Pretrained(
        network.eval(),
        data.fleet.schema,
        fleet.window,
        training.best | counts,
        data.windows.held_x[:256],
        data.windows,
    )


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, accuracy averaged over the classes that occur, and loss on held-out windows."""
    right = logits.argmax(1) == labels
    recalls = [right[labels == label].double().mean() for label in torch.bincount(labels).nonzero()]
    return {
        "held_out_accuracy": float(right.double().mean()),
        "held_out_balanced_accuracy": float(torch.stack(recalls).mean()),
        "held_out_loss": float(functional.cross_entropy(logits, labels)),
    }


def _objective(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: two are hardly faster, and far slower when something else runs on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _trainer(epochs: int, *, progress: bool) -> pl.Trainer:
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[RichProgressBar(leave=False)] if progress else [],
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
    )
