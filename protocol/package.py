"""Model packages: one signed archive with everything that a device needs to learn a task.

An archive is a ZIP of stored (uncompressed) members with fixed dates, so equal contents give equal bytes:

    manifest.cose        COSE_Sign1 over the manifest, by the publisher's key
    prefix.onnx          window -> features: the frozen part, run once per window
    step.onnx            (adapter, features, labels, weights) -> (loss, gradient)
    predict.onnx         (adapter, features) -> logits
    adapter.safetensors  the initial adapter: one float32 vector named "adapter"

and, where the manifest's `engines` name them, the same graphs for other runtimes:

    training_model.onnx, training_checkpoint        onnxruntime-training: in the place of step.onnx
    prefix.tflite, step.tflite, predict.tflite      litert; the labels are int32 there

Tensors of the graphs, all with a fixed batch of `manifest.batch` rows (short batches are padded with
weight 0):

    window    float32 [batch, *input_shape]          features  float32 [batch, feature_size]
    adapter   float32 [parameters]                   labels    int64   [batch]
    weights   float32 [batch]                        loss      float32 []
    gradient  float32 [parameters]                   logits    float32 [batch, classes]

`input_shape` is [channels, length], of pictures [channels, height, width].
`loss` is the cross-entropy, summed with `weights` and divided by their sum; `gradient` is that of the loss.
Where the manifest's `tasks` name "discriminant" or "anomaly", the adapter has more segments behind those of
the graphs, and `parameters` above are those of the graphs alone (`Manifest.graph_parameters`). A package with
"discriminant" has one more member, which runs on any device that has onnxruntime:

    embedding.onnx       features -> embedding, float32 [batch, embedding_size]: frozen

The manifest names the SHA-256 of every other member. This module works on bytes in memory.
"""

import hashlib
import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from protocol import cbor, discriminant, records
from protocol.errors import ArtifactError, shown
from protocol.input_schema import InputSchema, WindowSpec
from protocol.signing import ENVELOPE_BYTES, PrivateKey, PublicKey, sign, signed_payload, verify

FORMAT_VERSION, FORMAT_VERSION_NORMALISED = 1, 2
"""A package that wants windows normalised on the device has the second: an agent that does not know how must
not train on them as they are."""
MANIFEST, PREFIX, STEP, PREDICT, ADAPTER = (
    "manifest.cose",
    "prefix.onnx",
    "step.onnx",
    "predict.onnx",
    "adapter.safetensors",
)
MEMBERS = (PREFIX, STEP, PREDICT, ADAPTER)
EMBEDDING = "embedding.onnx"
TRAINING_MODEL, TRAINING_CHECKPOINT = "training_model.onnx", "training_checkpoint"
PREFIX_TFLITE, STEP_TFLITE, PREDICT_TFLITE = "prefix.tflite", "step.tflite", "predict.tflite"
ONNXRUNTIME, ONNXRUNTIME_TRAINING, LITERT = "onnxruntime", "onnxruntime-training", "litert"
ENGINES: Mapping[str, tuple[str, ...]] = {
    ONNXRUNTIME: (PREFIX, STEP, PREDICT),
    ONNXRUNTIME_TRAINING: (PREFIX, TRAINING_MODEL, TRAINING_CHECKPOINT, PREDICT),
    LITERT: (PREFIX_TFLITE, STEP_TFLITE, PREDICT_TFLITE),
}
"""Training engines, and the members that each of them needs."""
CLASSIFICATION, DISCRIMINANT, ANOMALY = "classification", "discriminant", "anomaly"
TASKS = (CLASSIFICATION, DISCRIMINANT, ANOMALY)
"""What an adapter can be trained for. Segments stand in this order: those of the graphs, those of the
discriminant head (protocol/discriminant.py), and "anomaly", the head of anomaly detection."""
_SEGMENTS_OF = {DISCRIMINANT: discriminant.SEGMENTS, ANOMALY: (ANOMALY,)}
MAX_PACKAGE_BYTES = 512 * 1024 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_DIRECTORY_BYTES = 64 * 1024
"""Of the archive's central directory: zipfile makes an object for each entry before anything is checked."""
MAX_ADAPTER_HEADER_BYTES = 64 * 1024
"""Of the safetensors file beside its values."""
MAX_PARAMETERS = 4_000_000
EXTRACT_MEMORY = 4 * 1024 * 1024
"""Bytes that `extract` takes at most, whatever the archive: directory, manifest and one block."""
CONTEXT = b"graftwork/1/package"
_BLOCK_BYTES = 1 << 20
_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
_END_OF_DIRECTORY_64 = struct.Struct("<4sLQL")
_UNREADABLE = (
    zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError, RuntimeError, OverflowError,
    struct.error, LookupError,
)  # fmt: skip
"""What zipfile raises when it reads hostile bytes."""


@dataclass(frozen=True)
class Segment:
    """A named, contiguous part of the flat adapter vector (one per layer group)."""

    name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"segment {shown(self.name)}: expected a positive size, got {self.size}")


@dataclass(frozen=True)
class Parity:
    """How far the exported graphs are from PyTorch, measured at export (relative L2 errors)."""

    loss: float
    gradient: float
    logits: float


@dataclass(frozen=True)
class Manifest:
    """The signed description of a model package."""

    format_version: int
    name: str
    """Human name, shown to operators."""
    version: int
    """Grows with every package of the same name."""
    schema: InputSchema
    window: WindowSpec
    segments: tuple[Segment, ...]
    batch: int
    """Rows of every graph input."""
    feature_size: int
    """Width of the feature vector between prefix and step."""
    backbone_sha256: bytes
    """SHA-256 of prefix.onnx: the name of the backbone, and the key of the feature cache."""
    files: dict[str, bytes]
    """SHA-256 of every member but the manifest."""
    parity: Parity
    metrics: dict[str, float] = field(default_factory=dict)
    """What the exporter measured, e.g. held-out accuracy of the untouched backbone head."""
    description: str = ""
    engines: tuple[str, ...] = (ONNXRUNTIME,)
    """Training engines that the package has members for. Names that this version does not know are kept: a
    newer exporter may write for more."""
    tasks: tuple[str, ...] = (CLASSIFICATION,)
    """What the adapter has segments for, in the order of `TASKS`."""
    expires: float = 0.0
    """Unix seconds after which no device installs the package; 0: never."""

    def __post_init__(self) -> None:
        expected = format_version(self.schema)
        if self.format_version != expected:
            raise ValueError(f"format_version: expected {expected}, got {self.format_version}")
        if not 1 <= self.parameters <= MAX_PARAMETERS:
            raise ValueError(f"segments: expected 1 to {MAX_PARAMETERS} parameters, got {self.parameters}")
        if len(self.slices()) != len(self.segments):
            raise ValueError("segments: expected no name twice")
        if not 1 <= self.batch <= 4096:
            raise ValueError(f"batch: expected 1 to 4096, got {self.batch}")
        if not 1 <= self.feature_size <= 16_000_000:
            raise ValueError(f"feature_size: expected 1 to 16,000,000, got {self.feature_size}")
        if not set(self.files) >= set(MEMBERS):
            raise ValueError(f"files: expected at least {', '.join(MEMBERS)}")
        if self.files[PREFIX] != self.backbone_sha256:
            raise ValueError("backbone_sha256: expected the hash of prefix.onnx")
        self._check_engines()
        self._check_tasks()

    @property
    def parameters(self) -> int:
        """Length of the flat adapter vector."""
        return sum(segment.size for segment in self.segments)

    @property
    def graph_parameters(self) -> int:
        """Length of the part of the adapter that the graphs take: its beginning."""
        return sum(segment.size for segment in self.segments if segment.name not in self._headed)

    @property
    def embedding_size(self) -> int:
        """Width of what embedding.onnx gives; 0 where the package has no discriminant head."""
        if DISCRIMINANT not in self.tasks:
            return 0
        return discriminant.dimension_of(self.slices()[discriminant.WITHIN])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, length), of pictures (channels, height, width)."""
        return self.schema.input_shape(self.window)

    def slices(self) -> dict[str, slice]:
        """Where each segment stands in the flat adapter vector."""
        slices, start = {}, 0
        for segment in self.segments:
            slices[segment.name] = slice(start, start + segment.size)
            start += segment.size
        return slices

    def task_slices(self) -> dict[str, slice]:
        """Where the parameters of each task stand in the flat adapter vector; together they cover it."""
        start = self.graph_parameters
        parts = {CLASSIFICATION: slice(0, start)}
        for task in self.tasks[1:]:
            stop = start + sum(self._sizes[name] for name in _SEGMENTS_OF[task])
            parts[task] = slice(start, stop)
            start = stop
        return parts

    def step_ratios(self, ratio: float) -> tuple[float, ...]:
        """Quantisation step of each segment in root mean squares, where most have `ratio`.

        The statistics of the discriminant head are sums that later releases hardly correct: they are coded
        finely, and sent rarely.
        """
        fine = _SEGMENTS_OF[DISCRIMINANT] if DISCRIMINANT in self.tasks else ()
        return tuple(
            min(ratio, discriminant.STEP_RATIO) if segment.name in fine else ratio
            for segment in self.segments
        )

    @property
    def _sizes(self) -> dict[str, int]:
        return {segment.name: segment.size for segment in self.segments}

    @property
    def _headed(self) -> set[str]:
        """Names of the segments that the graphs do not see."""
        return {name for task in self.tasks[1:] for name in _SEGMENTS_OF[task]}

    def _check_tasks(self) -> None:
        known = tuple(task for task in TASKS if task in self.tasks)
        if self.tasks != known or known[:1] != (CLASSIFICATION,):
            raise ValueError(
                f"tasks: expected {CLASSIFICATION}, with or without {DISCRIMINANT} and {ANOMALY}, got "
                f"{shown(self.tasks)}"
            )
        heads = [name for task in self.tasks[1:] for name in _SEGMENTS_OF[task]]
        names = [segment.name for segment in self.segments]
        if names[len(names) - len(heads) :] != heads or len(names) == len(heads):
            raise ValueError(
                f"segments: expected {', '.join(heads)} behind those of the graphs, got {shown(names)}"
            )
        if ANOMALY in self.tasks:
            self._check_anomaly()
        if DISCRIMINANT in self.tasks:
            discriminant.check_sizes(self._sizes, len(self.schema.classes))
            if EMBEDDING not in self.files:
                raise ValueError(f"files: expected {EMBEDDING} for the task {DISCRIMINANT}")

    def _check_anomaly(self) -> None:
        size = self.segments[-1].size
        if size % self.feature_size:
            raise ValueError(
                f"segments: expected {ANOMALY!r} a multiple of {self.feature_size} long, got {size}"
            )
        if self.schema.of_images:
            raise ValueError(f"tasks: {ANOMALY} is for time series, and these are pictures")

    def _check_engines(self) -> None:
        if ONNXRUNTIME not in self.engines or len(set(self.engines)) != len(self.engines):
            raise ValueError(f"engines: expected {ONNXRUNTIME}, and no name twice, got {shown(self.engines)}")
        for engine in self.engines:
            missing = set(ENGINES.get(engine, ())) - set(self.files)
            if missing:
                raise ValueError(f"files: expected {min(missing)} for the engine {engine}")


@dataclass(frozen=True)
class ModelPackage:
    """An opened and checked package."""

    manifest: Manifest
    members: Mapping[str, bytes]
    adapter: NDArray[np.float32]
    """The initial adapter, float32 [parameters]."""
    sha256: bytes
    """Hash of the whole archive: the package's name on the wire."""


def format_version(schema: InputSchema) -> int:
    """The version that a package with this schema has."""
    return FORMAT_VERSION if schema.normalisation is None else FORMAT_VERSION_NORMALISED


def pack(manifest: Manifest, members: Mapping[str, bytes], key: PrivateKey) -> bytes:
    """Write a signed archive.

    Raises:
        ArtifactError: `members` are not those of the manifest.
    """
    _check_names(manifest, members)
    for name, content in members.items():
        _check_hash(name, manifest.files[name], hashlib.sha256(content).digest())
    signed = sign(cbor.encode(records.to_numbered(manifest)), key, CONTEXT)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, content in [(MANIFEST, signed), *sorted(members.items())]:
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return archive.getvalue()


def unpack(data: bytes, publisher: PublicKey | None) -> ModelPackage:
    """Open an archive and check every byte of it against the signed manifest.

    Args:
        data: the archive.
        publisher: who must have signed it; None skips the signature, for tools that only look.

    Raises:
        SignatureError: the manifest is not signed by `publisher`.
        ArtifactError: the archive is malformed or does not match its manifest.
    """
    parts: dict[str, bytearray] = {}

    def write(name: str, block: bytes) -> None:
        parts.setdefault(name, bytearray()).extend(block)

    manifest = extract(io.BytesIO(data), publisher, write)
    members = {name: bytes(content) for name, content in parts.items()}
    adapter = read_adapter(members[ADAPTER], manifest.parameters)
    return ModelPackage(manifest, members, adapter, hashlib.sha256(data).digest())


def extract(stream: BinaryIO, publisher: PublicKey | None, write: Callable[[str, bytes], None]) -> Manifest:
    """Check an archive block by block, so that a large package never stands in memory as a whole.

    Args:
        stream: the archive, open for reading and seekable.
        publisher: who must have signed the manifest; None skips the signature.
        write: takes (member, next block of its content). Nothing of it may be used before this returns.

    Raises:
        SignatureError: the manifest is not signed by `publisher`.
        ArtifactError: the archive is malformed or does not match its manifest.
    """
    try:
        _check_directory(stream)
        with zipfile.ZipFile(stream) as archive:
            infos = _check_infos(archive.infolist())
            manifest = _read_manifest(archive.read(infos.pop(MANIFEST)), publisher)
            _check_names(manifest, infos)
            _check_adapter_size(infos[ADAPTER].file_size, manifest.parameters)
            for name, info in infos.items():
                digest = hashlib.sha256()
                write(name, b"")  # an empty member is there, too
                with archive.open(info) as member:
                    for block in iter(lambda: member.read(_BLOCK_BYTES), b""):
                        digest.update(block)
                        write(name, block)
                _check_hash(name, manifest.files[name], digest.digest())
    except _UNREADABLE as error:
        raise ArtifactError(f"not a readable archive: {error}") from error
    return manifest


def write_adapter(adapter: NDArray[np.float32]) -> bytes:
    """Serialise a flat adapter vector as safetensors."""
    return safetensors.numpy.save({"adapter": np.ascontiguousarray(adapter, np.float32)})


def read_adapter(data: bytes, parameters: int) -> NDArray[np.float32]:
    """Read a flat adapter vector, float32 [parameters], from safetensors.

    Memory: at most four times the largest accepted file, MAX_ADAPTER_HEADER_BYTES and 4 bytes a parameter.

    Raises:
        ArtifactError: the file is too large, malformed, or holds another shape or type.
    """
    _check_adapter_size(len(data), parameters)
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"malformed safetensors: {error}") from error
    adapter = tensors.get("adapter")
    if adapter is None or adapter.dtype != np.float32 or adapter.shape != (parameters,):
        raise ArtifactError(f"expected one tensor 'adapter', float32 [{parameters}]")
    if not np.isfinite(adapter).all():
        raise ArtifactError("the adapter holds NaN or infinite values")
    return adapter


def _check_directory(stream: BinaryIO) -> None:
    """Bound the directory before zipfile reads it; an archive ends with the record that tells its size."""
    tail_bytes = _END_OF_DIRECTORY_64.size + _END_OF_DIRECTORY.size
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - tail_bytes))
    tail = stream.read(tail_bytes)
    if len(tail) != tail_bytes or tail[-_END_OF_DIRECTORY.size :][:4] != b"PK\x05\x06":
        raise ArtifactError("not a readable archive: expected a ZIP without a comment")
    if tail[:4] == b"PK\x06\x07":
        raise ArtifactError("not a readable archive: expected a ZIP without ZIP64 records")
    directory_bytes = _END_OF_DIRECTORY.unpack(tail[-_END_OF_DIRECTORY.size :])[5]
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ArtifactError(
            f"expected a directory of at most {MAX_DIRECTORY_BYTES} bytes, got {directory_bytes}"
        )


def _check_adapter_size(size: int, parameters: int) -> None:
    limit = 4 * parameters + MAX_ADAPTER_HEADER_BYTES
    if size > limit:
        raise ArtifactError(f"member {ADAPTER!r}: expected at most {limit} bytes, got {size}")


def _check_infos(infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if sum(info.file_size for info in infos) > MAX_PACKAGE_BYTES:
        raise ArtifactError(f"expected at most {MAX_PACKAGE_BYTES} bytes")
    for info in infos:
        # Stored members cannot unfold into more bytes than the archive has.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ArtifactError(f"member {shown(info.filename)}: expected a stored member")
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise ArtifactError("a member stands in the archive twice")
    if MANIFEST not in members or members[MANIFEST].file_size > MAX_MANIFEST_BYTES + ENVELOPE_BYTES:
        raise ArtifactError(f"not a model package: no {MANIFEST} inside")
    return members


def _read_manifest(signed: bytes, publisher: PublicKey | None) -> Manifest:
    if publisher is None:
        payload = signed_payload(signed, limit=MAX_MANIFEST_BYTES)
    else:
        payload = verify(signed, publisher, CONTEXT, limit=MAX_MANIFEST_BYTES)
    return records.from_numbered(Manifest, cbor.decode(payload, limit=MAX_MANIFEST_BYTES))


def _check_names(manifest: Manifest, members: Mapping[str, object]) -> None:
    odd = set(members) ^ set(manifest.files)
    if odd:
        raise ArtifactError(f"member {shown(min(odd))} is missing or not in the manifest")


def _check_hash(name: str, expected: bytes, found: bytes) -> None:
    if found != expected:
        raise ArtifactError(f"member {shown(name)}: expected SHA-256 {expected.hex()}, got {found.hex()}")


__all__ = [
    "ADAPTER",
    "ANOMALY",
    "CLASSIFICATION",
    "ENGINES",
    "LITERT",
    "MEMBERS",
    "ONNXRUNTIME",
    "ONNXRUNTIME_TRAINING",
    "PREDICT",
    "PREDICT_TFLITE",
    "PREFIX",
    "PREFIX_TFLITE",
    "STEP",
    "STEP_TFLITE",
    "TRAINING_CHECKPOINT",
    "TRAINING_MODEL",
    "Manifest",
    "ModelPackage",
    "Parity",
    "Segment",
    "extract",
    "format_version",
    "pack",
    "read_adapter",
    "unpack",
    "write_adapter",
]
