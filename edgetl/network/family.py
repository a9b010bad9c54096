"""What edgetl knows about a backbone: one file in families/ is one `Family`.

Canonical paths name parameters the same under every version of the library that builds the module:
`layers.3.attn.q.weight`. Letters: B batch, L blocks, H heads, F neurons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from edgetl.network.edits import Constant, Edit, Keep
from edgetl.operations import Kind
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.train.batches import Data


@dataclass(frozen=True)
class Group:
    """Units that can be removed one by one, as slices of the tensors that hold them."""

    name: str  # "layers.3.heads"
    kind: Literal["heads", "neurons", "channels"]
    place: str  # canonical path of the module that becomes constant when no unit is left: "layers.3.attn"
    stage: int  # index into Family.stages of the block that the units lie in
    gate: str  # canonical path of the layer whose input carries the units, no other group's: "layers.3.attn.o"
    tensors: tuple[tuple[str, int], ...]  # (canonical path, axis) of every slice
    count: int  # units
    width: int  # consecutive entries of a unit along each axis; d for heads, 1 for neurons
    least: int = 0  # units that a method should leave: 1 where nothing passes the place by

    def keep(self, units: Sequence[int]) -> Edit:
        """Return the edit that keeps just these units, in ascending order."""
        if not units:
            return Constant(self.place)
        indices = [u * self.width + i for u in sorted(units) for i in range(self.width)]
        return Keep(self.tensors, tuple(indices))


@dataclass(frozen=True)
class Prep:
    """The pre-processing that a backbone's weights want. None: the family does not care."""

    size: tuple[int, int] | None = None  # height, width in pixels
    channels: int | None = None
    mean: tuple[float, ...] | None = None  # per channel, of values in [0, 1]
    std: tuple[float, ...] | None = None
    resample: str | None = None  # "bilinear" | "bicubic" | ...
    tokenizer: str | None = None  # path of a tokenizer.json
    length: int | None = None  # most tokens of a text; readings of a sensor window
    rate: int | None = None  # of recordings: samples a second
    samples: int | None = None  # of a recording
    window: int | None = None  # samples of a spectrogram's frame
    hop: int | None = None  # samples between frames
    bands: int | None = None  # of a spectrogram


@dataclass(frozen=True)
class Layout:
    """One naming of a family's weights: pairs of (canonical, foreign) names; `{}` stands for a block's number."""

    pairs: tuple[tuple[str, str], ...]  # of whole dotted prefixes; the longest that matches a name wins
    ignored: tuple[str, ...] = field(default=())  # foreign names (fnmatch) that hold no weights of ours


class Family(ABC):
    """Builds one kind of backbone and describes it; the only place that knows its layer names."""

    name: ClassVar[str]  # the file's name
    data: ClassVar[Kind]
    merges: ClassVar[bool] = False  # its blocks can merge tokens
    names: ClassVar[tuple[Layout, ...]]  # layouts of weights it can read, of live modules and of files

    @abstractmethod
    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the complete configuration for a source: a folder, a hub id, or sizes for random weights.

        Every size has a default. A complete configuration is a mapping that returns itself, which is how the one of
        a saved network is checked; a `num_labels` in it gives way to `labels`.

        Raises:
            BadInput: the source is not of this family, or a size is unknown or impossible.

        """

    def fitted(self, sizes: Mapping[str, Json], data: Data) -> Mapping[str, Json]:
        """Return the sizes of a new network with those that the data decides, where the recipe does not."""
        return sizes

    @abstractmethod
    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return the pre-processing that the weights of this source want; of a saved network, what it recorded."""

    @abstractmethod
    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut.

        It must also build under `torch.device("meta")`, where the sizes of a saved network are compared first.
        """

    @abstractmethod
    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return valid inputs by name, in the order of the exported file's inputs."""

    @abstractmethod
    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer of the module; other keys of `inputs` are ignored."""

    @abstractmethod
    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last stage's output."""

    @abstractmethod
    def head(self, module: nn.Module) -> str:
        """Return the canonical path of the classifier, `head`-only training's only trained layer."""

    @abstractmethod
    def stages(self, module: nn.Module) -> tuple[str, ...]:
        """Return the canonical paths of the blocks whose outputs are features, in order."""

    @abstractmethod
    def units(self, module: nn.Module) -> tuple[Group, ...]:
        """Return the prunable groups of the module as it is now, those of constant places left out."""

    @abstractmethod
    def constant(self, module: nn.Module, place: str) -> None:
        """Put the constant that is left when a place has no unit, in place."""

    @abstractmethod
    def resized(self, module: nn.Module) -> None:
        """Bring attributes derived from sizes (head counts) in line with the tensors, in place."""

    @abstractmethod
    def adapted(self, module: nn.Module) -> tuple[str, ...]:
        """Return the canonical paths of the linear layers that adapters attach to by default."""

    def tokens(self, module: nn.Module) -> tuple[int, ...]:
        """Return how many tokens that may merge enter every block as it is now, and how many leave the last.

        Empty where the family merges none.
        """
        return ()

    def merge(self, module: nn.Module, layer: int, r: int) -> None:
        """Let a block merge r tokens, at most half of those that may; in place. Only of a family that `merges`."""
        raise NotImplementedError
