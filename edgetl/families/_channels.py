"""What every convolutional family shares: channels as groups, and the constants that are left without them.

Canonical names of a block: its convolutions with what normalises them are parts, `BLOCK.first.{conv,norm}`. The
outputs of a part are the units of a group, which the part behind it reads: its convolution is the gate. A depthwise
convolution, where channel c of the output comes from channel c of the input, belongs to the group that passes it.
Channels of the residual stream stay: they would have to go from all blocks of a stage at once.
Letters: B batch, C channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from edgetl.families._prep import recorded, side
from edgetl.families._sizes import checked, complete, stated
from edgetl.network.family import Family, Group, Prep
from edgetl.network.names import Live, live
from edgetl.network.saved import saved_prep
from edgetl.network.source import locate
from edgetl.strict import Strict
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.train.batches import Data

TENSORS = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
"""Of a part, those with one entry per output along their first axis."""


class Uniform(nn.Module):
    """A convolution without inputs, norm and activation included: the same answer at every place of the map."""

    def __init__(self, bias: Tensor, stride: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())
        self.stride = stride  # of all the convolutions that it stands for

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, C, height / stride, width / stride), rounded up, whatever `hidden` (B, any, height, width)."""
        places = torch.zeros_like(hidden[:, :1, :: self.stride, :: self.stride])
        return places + self.bias[:, None, None]


class ConvNorm(nn.Module):
    """A convolution without bias, padded to keep the size, its batch normalisation, and an activation or none."""

    def __init__(
        self,
        ins: int,
        outs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        act: bool = True,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding, groups = (height // 2, width // 2), ins if depthwise else 1
        self.conv = nn.Conv2d(ins, outs, (height, width), stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outs)
        self.act: nn.Module = nn.ReLU() if act else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        return cast(Tensor, self.act(self.norm(self.conv(hidden))))


class Convolutional(Family):
    """What a convolutional family describes in the same way as all others."""

    parts: ClassVar[tuple[str, ...]]  # of a block, in order; one may have only some
    depthwise: ClassVar[frozenset[str]] = frozenset()  # parts whose channels are those before them
    behind: ClassVar[tuple[str, ...]] = ("norm", "act")  # of a part: its layers behind the convolution

    def passed_by(self, block: nn.Module) -> bool:
        """Return whether a shortcut leads around the block's parts."""
        return True

    def fitted(self, sizes: Mapping[str, Json], data: Data) -> Mapping[str, Json]:
        """Return the sizes with side and channels of the data's pictures."""
        pixels = data.prepared.inputs.get("pixel_values")
        return sizes if pixels is None else {"image_size": pixels.shape[-1], "num_channels": pixels.shape[1], **sizes}

    def past(self, holder: nn.Module, made: Tensor) -> Tensor:
        """Return what a part makes of its convolution's output (B, C, height, width); not every part has all layers."""
        for name in self.behind:
            layer = cast(nn.Module | None, getattr(holder, name, None))
            made = made if layer is None else layer(made)
        return made

    def head(self, module: nn.Module) -> str:
        """Return the classifier's path."""
        return "head"

    def units(self, module: nn.Module) -> tuple[Group, ...]:
        """Return the channels between the convolutions of every block."""
        names = live(self, module)
        return tuple(g for i, block in enumerate(self.stages(module)) for g in self._groups(names, i, block))

    def constant(self, module: nn.Module, place: str) -> None:
        """Leave of a part that reads no channel, and of those before it in its block, only what it then answers."""
        names = live(self, module)
        block, _, last = place.rpartition(".")
        if not names.has(f"{place}.conv"):  # went with a part behind it
            return
        conv = cast(nn.Conv2d, names.at(f"{place}.conv"))
        with torch.no_grad():
            nothing = conv.weight.new_zeros(1, conv.out_channels, 1, 1)
            made = nothing if conv.bias is None else nothing + conv.bias[:, None, None]
            bias = self.past(names.at(place), made).flatten()
        before = [f"{block}.{part}" for part in self.parts[: self.parts.index(last)] if names.has(f"{block}.{part}")]
        stride = math.prod(_stride(names, path) for path in (*before, place))
        for path in before:
            names.put(path, nn.Identity())
        names.put(place, Uniform(bias, stride))

    def resized(self, module: nn.Module) -> None:
        """Do nothing: no size of a convolutional network is kept beside its layers."""

    def adapted(self, module: nn.Module) -> tuple[str, ...]:
        """Return nothing: low-rank adapters are for linear layers, and the only one is the classifier."""
        return ()

    def _groups(self, names: Live, stage: int, block: str) -> list[Group]:
        found: list[Group] = []
        least = 0 if self.passed_by(names.at(block)) else 1
        carried: list[tuple[str, int]] = []  # slices of the channels that the next part reads
        source = ""
        for path in (f"{block}.{part}" for part in self.parts if names.has(f"{block}.{part}")):
            if isinstance(names.at(path), nn.Identity):
                continue
            passed = path.rpartition(".")[2] in self.depthwise
            if carried and not passed:
                gate = f"{path}.conv"
                slots = (*carried, (f"{gate}.weight", 1))
                count = cast(nn.Conv2d, names.at(gate)).in_channels
                found.append(Group(f"{source}.channels", "channels", path, stage, gate, slots, count, 1, least))
            source = source if passed else path
            carried = [*(carried if passed else ()), *_outputs(names, path)]
        return found


class HFConvolutional(Convolutional):
    """A convolutional family of transformers: square images, and a config.json whose `model_type` names it."""

    kind: ClassVar[str]
    sizes: ClassVar[type[Strict]]
    behind = ("normalization", "activation")

    def given(self, source: str | Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the sizes that a source states.

        Raises:
            BadInput: the source is missing, or of another kind.

        """
        if not isinstance(source, str):
            return source
        sizes = stated(self.sizes, self.kind, source)
        pixels = side(locate(source))
        return {**sizes, **({} if pixels is None else {"image_size": pixels})}

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return size and channels, and mean, deviation and filter where the folder records them."""
        size, channels = (int(config["image_size"]),) * 2, int(config["num_channels"])
        if not isinstance(source, str):
            return Prep(size=size, channels=channels)
        folder = locate(source)
        return saved_prep(folder) or recorded(folder, size, channels)

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `pixel_values` (B, C, height, width)."""
        return noise(config, batch)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(pixel_values=inputs["pixel_values"]).logits)


class Staged(nn.Module, ABC):
    """A stem, stages of blocks by number, and what makes the answer of the last block's map."""

    stem: nn.Module
    layers: nn.ModuleDict

    def forward(self, maps: Tensor) -> Tensor:
        """Return the (B, labels) answer to maps (B, C, height, width)."""
        hidden = self.stem(maps)
        for stage in self.layers.values():
            hidden = stage(hidden)
        return self.answer(hidden)

    @abstractmethod
    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output."""


class Own(Convolutional):
    """A convolutional family of our own: a staged module, and sizes under our own names."""

    sizes: ClassVar[type[Strict]]
    network: ClassVar[type[Staged]]  # made of sizes and the number of labels

    @abstractmethod
    def reads(self, config: Json) -> Prep:
        """Return what networks of these sizes read."""

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; the family's `sizes` has the keys of a mapping."""
        given = self.given(source) if isinstance(source, str) else source
        return complete(checked(self.sizes, given, self.name), labels)

    def given(self, source: str) -> Mapping[str, Json]:
        """Return the sizes that a folder or hub id states.

        Raises:
            BadInput: the source is missing, or of another kind.

        """
        return stated(self.sizes, self.name, source)

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return what the sizes say that the network reads; of a saved network, what it recorded."""
        found = saved_prep(locate(source)) if isinstance(source, str) else None
        return found or self.reads(config)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        module = self.network(checked(self.sizes, config, self.name), config["num_labels"]).eval()
        initialise(live(self, module))
        return module

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, C, height, width)."""
        return cast(Staged, module).answer(hidden)

    def stages(self, module: nn.Module) -> tuple[str, ...]:
        """Return the blocks behind the stem."""
        return blocks_of(cast(Staged, module).layers)


class Pictures(Own):
    """A convolutional family of our own for square images."""

    def reads(self, config: Json) -> Prep:
        """Return size and channels."""
        return Prep(size=(int(config["image_size"]),) * 2, channels=int(config["num_channels"]))

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `pixel_values` (B, C, height, width)."""
        return noise(config, batch)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(inputs["pixel_values"]))


def blocks_of(layers: nn.Module) -> tuple[str, ...]:
    """Return the paths of the blocks in `layers`, a sequence of them for every stage, by name."""
    return tuple(f"layers.{stage}.{i}" for stage, held in layers.named_children() for i, _ in held.named_children())


def noise(config: Json, batch: int) -> dict[str, Tensor]:
    """Return normal noise as square `pixel_values`."""
    shape = (batch, config["num_channels"], config["image_size"], config["image_size"])
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def _outputs(names: Live, path: str) -> list[tuple[str, int]]:
    if isinstance(names.at(path), Uniform):
        return [(f"{path}.bias", 0)]
    return [(f"{path}.{name}", 0) for name in TENSORS if names.has(f"{path}.{name}")]


def _stride(names: Live, path: str) -> int:
    layer = names.at(path)
    if isinstance(layer, Uniform):
        return layer.stride
    return cast(nn.Conv2d, names.at(f"{path}.conv")).stride[0] if names.has(f"{path}.conv") else 1


def initialise(names: Live) -> None:
    """Draw all weights anew, in an order that no library version changes (He et al. 2015, arXiv 1502.01852)."""
    with torch.no_grad():
        for path in names.state():
            owner, attribute = names.owner(path)
            tensor = cast(Tensor, getattr(owner, attribute))
            if isinstance(owner, nn.Conv2d) and attribute == "weight":
                nn.init.kaiming_normal_(tensor, nonlinearity="relu")
            elif isinstance(owner, nn.Linear) and attribute == "weight":
                nn.init.normal_(tensor, std=0.01)
            elif tensor.is_floating_point():
                tensor.fill_(1.0 if attribute in {"weight", "running_var"} else 0.0)
