"""Weights from a file or folder to a view model: published LDM files, diffusers folders, our own compact files.

The kind is told from the content. Every tensor that the networks expect is looked up under its name in the file, read
when its turn comes, checked, cast and handed over: no more than the inference weights and one tensor are ever held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from .. import durable
from ..cameras import PoseKind
from ..errors import UsageError, WeightsError
from ..machine import Backend
from ..watch import Caution, Progress, Watch, silent
from . import ldm, lonevolume
from .tensorfiles import TensorFile, TensorInfo, open_tensors
from .viewmodel import POSE_NUMBERS, Description, ViewModel, fold_cross_attention

HEADER = "zero123"  # the key of a compact file's description
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAFE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Found:
    """Where one of our tensors lies."""

    file: TensorFile
    place: ldm.Place


@dataclass(frozen=True)
class Weights:
    """Opened weights: what they make, and where each tensor is to be had."""

    path: Path
    kind: str  # "ldm", "diffusers" or "compact"
    description: Description
    files: tuple[TensorFile, ...]
    ema: bool  # whether the averaged weights are taken
    has_ema: bool

    def find(self, name: str) -> Found:
        """Our tensor `name`; a WeightsError names what the file lacks."""
        wanted = self.places(name)
        for place in wanted:
            for file in self.files_of(name):
                if place.name in file.infos:
                    return Found(file, place)
        raise WeightsError(f"it lacks the tensor {wanted[0].name}", where=str(self.path), remedy="fetch it again")

    def places(self, name: str) -> list[ldm.Place]:
        if self.kind == "ldm":
            vae = self.description.vae
            assert vae is not None
            return [ldm.place(name, self.description.unet, vae, ema=self.ema)]
        if self.kind == "compact":
            return [ldm.Place(name)]
        return diffusers_places(name.partition(".")[2])

    def files_of(self, name: str) -> tuple[TensorFile, ...]:
        """The files that may hold a tensor; a folder has one for each network."""
        if self.kind != "diffusers":
            return self.files
        number = COMPONENTS.index(name.partition(".")[0])
        return self.files[number : number + 1]  # none of a projection that is still to be learnt


def load(
    path: Path,
    backend: Backend,
    *,
    ema: bool = True,
    pose_kind: PoseKind | None = None,
    lean: bool = False,
    watch: Watch = silent,
) -> ViewModel:
    """The view model that lies at `path`, ready to be used. A lean one holds one network at a time on the device."""
    with ExitStack() as stack:
        file = None if path.is_dir() else stack.enter_context(open_tensors(path))
        if file is not None and lonevolume.is_one(file):
            return lonevolume.load(file, backend)
        weights = settle(open_weights(path, stack, ema=ema, file=file), pose_kind)
        if ema and not weights.has_ema and weights.kind == "ldm":
            watch(Caution("no-ema", "the file holds no averaged weights: the raw ones are used", about_run=True))
        model = fill(weights, backend, watch, lean=lean)
    fold_cross_attention(model)
    model.lean = lean
    return model.eval().requires_grad_(False)


def open_weights(
    path: Path, stack: ExitStack, *, ema: bool, poseless: bool = False, file: TensorFile | None = None
) -> Weights:
    """Tells what lies at `path` and opens it, unless `file` is it; its files are closed with `stack`.

    `poseless` lets pass what knows no pose yet: an image-variations Stable Diffusion, which Zero-1-to-3 began as.
    """
    if path.is_dir():
        return open_folder(path, stack, ema=ema, poseless=poseless)
    file = file or stack.enter_context(open_tensors(path))
    if HEADER in file.metadata:
        return Weights(path, "compact", read_header(file, path), (file,), ema=False, has_ema=False)
    shapes = {name: info.shape for name, info in file.infos.items()}
    if ldm.MARK not in shapes and not (poseless and ldm.UNET + "input_blocks.0.0.weight" in shapes):
        raise WeightsError(f"{looks_like(shapes)}: it lacks the tensor {ldm.MARK}", where=str(path), remedy=REMEDY)
    has_ema = any(name.startswith(ldm.EMA + "diffusion_model") for name in shapes)
    try:
        networks = ldm.measure(shapes)
    except KeyError as missing:
        raise WeightsError(f"it lacks the tensor {missing.args[0]}", where=str(path), remedy="fetch it again") from None
    except ValueError as odd:
        what = f"the tensor {odd} has the shape {shapes[str(odd)]}, which makes no network"
        raise WeightsError(what, where=str(path), remedy="fetch it again") from None
    description = Description("zero123", "unknown", *networks)
    return Weights(path, "ldm", description, (file,), ema=ema and has_ema, has_ema=has_ema)


def refuse_strangers(weights: Weights, names: Iterable[str]) -> None:
    """A network with parts that ours have not (a deeper one, attention elsewhere) would compute something else."""
    known = {place.name for name in names for place in weights.places(name)}
    networks = (ldm.EMA + "diffusion_model" if weights.ema else ldm.UNET, ldm.CLIP)
    codec = tuple(f"{ldm.VAE}{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
    for name in weights.files[0].infos:
        if name.startswith((*networks, *codec)) and name not in known:
            raise WeightsError(f"no Zero123 network has its tensor {name}", where=str(weights.path), remedy=REMEDY)


REMEDY = "see `zero123 models list` for what can be loaded"


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file without our mark is, as far as its first convolution tells."""
    first = shapes.get(ldm.UNET + "input_blocks.0.0.weight")
    known = {4: "a plain Stable Diffusion model", 8: "an instruction-edit model", 9: "an inpainting model"}
    if first is not None and len(first) == 4:
        return f"not a Zero123 model but {known.get(first[1], 'another diffusion model')}"
    return "not a Zero123 model"


def settle(weights: Weights, pose_kind: PoseKind | None) -> Weights:
    """The weights with their pose kind. Original and Stable ones have the same shapes: whoever knows must say."""
    stated = weights.description.pose_kind
    if stated == "unknown" and pose_kind is None:
        raise UsageError(
            "nothing in the file tells the original pose formula from Stable Zero123's",
            where=str(weights.path),
            remedy="add --pose-kind original (Zero-1-to-3, Zero123-XL) or --pose-kind stable (Stable Zero123)",
        )
    if stated != "unknown" and pose_kind not in (None, stated):
        raise UsageError(
            f"the file says that its pose kind is {stated}", where=str(weights.path), remedy="leave out --pose-kind"
        )
    return replace(weights, description=replace(weights.description, pose_kind=pose_kind or stated))


# To be trained --------------------------------------------------------------------------------------------------------


def describe_to_train(path: Path, size: int) -> Description:
    """What `load_to_train` makes of what lies at `path`."""
    with ExitStack() as stack:
        return widened(open_weights(path, stack, ema=True, poseless=True), size).description


def load_to_train(path: Path, backend: Backend, size: int, *, watch: Watch = silent) -> ViewModel:
    """A view model as it is, or an image-variations model given what a pose needs, so that it first answers as it did.

    The first convolution gets channels for the photo's latent that count for nothing, and the context a projection that
    passes the photo's embedding on; what it takes of the pose is left to chance. Pictures are of `size` px, which
    published weights do not say.
    """
    with ExitStack() as stack:
        weights = widened(open_weights(path, stack, ema=True, poseless=True), size)
        return fill(weights, backend, watch, lean=False, read=read_or_begin)


def widened(weights: Weights, size: int) -> Weights:
    """With room for the photo's latent; what knows no pose yet learns the original one."""
    told = weights.description
    if told.pose_kind == "unknown" and holds(weights, "projection.weight"):
        raise UsageError(
            "nothing in the file tells the original pose formula from Stable Zero123's",
            where=str(weights.path),
            remedy="convert it first: zero123 models convert, with --pose-kind and --dtype float32",
        )
    unet = told.unet | {"in_channels": 2 * told.unet["out_channels"]}
    kind = "original" if told.pose_kind == "unknown" else told.pose_kind
    return replace(weights, description=replace(told, unet=unet, pose_kind=kind, size=size))


def read_or_begin(weights: Weights, name: str, slot: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the file, or what stands for it where the file knows no pose."""
    part, _, rest = name.partition(".")
    if part == "projection" and not holds(weights, name):
        fresh = torch.zeros(slot.shape)
        if rest == "weight":
            width = slot.shape[1] - POSE_NUMBERS
            nn.init.eye_(fresh[:, :width])
            nn.init.uniform_(fresh[:, width:], -(slot.shape[1] ** -0.5), slot.shape[1] ** -0.5)  # as torch's Linear
        return fresh.to(dtype)
    if name == "unet.conv_in.weight":
        found = weights.find(name)
        outward, inward, *kernel = found.file.infos[found.place.name].shape
        if 2 * inward == slot.shape[1]:
            known = read_tensor(weights, name, torch.empty(outward, inward, *kernel, device="meta"), dtype)
            return torch.cat([known, torch.zeros_like(known)], 1)
    return read_tensor(weights, name, slot, dtype)


def holds(weights: Weights, name: str) -> bool:
    return any(place.name in file.infos for place in weights.places(name) for file in weights.files_of(name))


# Compact files --------------------------------------------------------------------------------------------------------


def read_header(file: TensorFile, path: Path) -> Description:
    try:
        values = json.loads(file.metadata[HEADER])
        for name in ("unet", "vae", "volume"):
            if values.get(name):
                values[name] = {key: as_tuple(value) for key, value in values[name].items()}
        description = Description(**values)
        if description.pose_kind not in get_args(PoseKind):
            raise ValueError(description.pose_kind)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            "its description cannot be read", where=str(path), remedy="convert it again with this version"
        ) from error
    return description


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def convert(
    path: Path,
    out: Path,
    *,
    ema: bool,
    pose_kind: PoseKind | None,
    dtype: str,
    family: str = "",
    licence: str = "",
    overwrite: bool = False,
    watch: Watch = silent,
) -> None:
    """Writes the compact file: what inference needs, described in its header. One tensor is held at a time."""
    with ExitStack() as stack:
        file = None if path.is_dir() else stack.enter_context(open_tensors(path))
        if file is not None and lonevolume.is_one(file):
            raise UsageError("it is a volume net alone, and compact as it is", where=str(path), remedy="copy it")
        weights = settle(open_weights(path, stack, ema=ema, file=file), pose_kind)
        told = weights.description
        told = replace(told, family=family or told.family, licence=licence or told.licence)
        slots = networks_of(weights).state_dict()
        shapes = {name: TensorInfo(dtype, tuple(slot.shape)) for name, slot in slots.items()}

        def chunks() -> Iterator[bytes]:
            yield tensor_header(shapes, {HEADER: json.dumps(asdict(told), sort_keys=True)})
            for done, (name, slot) in enumerate(slots.items()):
                watch(Progress("converting", done, len(slots)))
                yield to_bytes(read_tensor(weights, name, slot, DTYPES[dtype]))

        durable.write_file(out, chunks(), overwrite=overwrite)


def tensor_header(shapes: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """How a safetensors file begins."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, info in shapes.items():
        entries[name] = {
            "dtype": SAFE_DTYPES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.size],
        }
        offset += info.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


# What is inside -------------------------------------------------------------------------------------------------------


def inspect(path: Path) -> dict[str, Any]:
    """What lies at `path`, without loading it."""
    with ExitStack() as stack:
        file = None if path.is_dir() else stack.enter_context(open_tensors(path))
        if file is not None and lonevolume.is_one(file):
            return lonevolume.inspect(file)
        weights = open_weights(path, stack, ema=True, file=file)
        told = weights.description
        slots = networks_of(weights).state_dict()
        parameters: dict[str, int] = {}
        for name, slot in slots.items():
            part = name.partition(".")[0]
            parameters[part] = parameters.get(part, 0) + slot.numel()
            weights.find(name)
        first = weights.find("unet.conv_in.weight")
        channels = told.unet["out_channels"] // told.patch**2
        return {
            "path": str(path),
            "kind": weights.kind,
            "family": told.family,
            "pose_kind": told.pose_kind,
            "licence": told.licence,
            "picture": f"{told.size} px, latents {channels} x {told.latent_side} x {told.latent_side}",
            "context": "one token" if told.tokens == "pooled" else "a token a patch",
            "unet": told.unet["block_out_channels"],
            "parameters": parameters,
            "precision": first.file.infos[first.place.name].dtype,
            "ema": weights.has_ema,
            "tensors": sum(len(file.infos) for file in weights.files),
            "bytes": sum(file.path.stat().st_size for file in weights.files),
            "skipped": sorted({note for file in weights.files for note in file.notes}),
        }


# Diffusers folders ----------------------------------------------------------------------------------------------------

COMPONENTS = ("unet", "vae", "clip", "projection")
FOLDERS = {
    "unet": ("unet",),
    "vae": ("vae",),
    "clip": ("image_encoder",),
    "projection": ("clip_camera_projection", "cc_projection"),
}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def open_folder(path: Path, stack: ExitStack, *, ema: bool, poseless: bool) -> Weights:
    """A diffusers pipeline of either class: Zero123Pipeline or Zero1to3StableDiffusionPipeline."""
    files, has_ema = [], False
    for component in COMPONENTS:
        folder = next((path / name for name in FOLDERS[component] if (path / name).is_dir()), None)
        if folder is None and component == "projection" and poseless:
            continue
        if folder is None:
            raise WeightsError(
                f"not a Zero123 pipeline: it lacks the folder {' or '.join(FOLDERS[component])}",
                where=str(path),
                remedy=REMEDY,
            )
        file, is_ema = pick_file(folder, ema)
        has_ema |= is_ema
        files.append(stack.enter_context(open_tensors(file)))
    clip = read_config(path / "image_encoder" / "config.json")
    description = Description(
        family=path.name,
        pose_kind="unknown",
        unet=arguments_of("unet", read_config(path / "unet" / "config.json")),
        vae=arguments_of("vae", read_config(path / "vae" / "config.json")),
        clip=arguments_of("clip", clip.get("vision_config", clip)),
    )
    return Weights(path, "diffusers", description, tuple(files), ema=has_ema, has_ema=has_ema)


def pick_file(folder: Path, ema: bool) -> tuple[Path, bool]:
    """The weights in a component's folder: averaged ones if wanted, full precision before half, safe before pickled."""
    for variant in (".fp16_ema", "", ".fp16") if ema else ("", ".fp16"):
        for suffix in (".safetensors", ".bin"):
            for stem in STEMS:
                path = folder / f"{stem}{variant}{suffix}"
                if path.is_file():
                    return path, variant == ".fp16_ema"
    raise WeightsError("it holds no weights", where=str(folder), remedy="fetch it again")


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError("its configuration cannot be read", where=str(path), remedy="fetch it again") from error
    return config


ARGUMENTS = {
    "unet": "sample_size in_channels out_channels block_out_channels layers_per_block cross_attention_dim "
    "attention_head_dim down_block_types up_block_types norm_num_groups use_linear_projection",
    "vae": "in_channels out_channels latent_channels block_out_channels layers_per_block down_block_types "
    "up_block_types sample_size norm_num_groups",
    "clip": "hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim image_size patch_size "
    "hidden_act layer_norm_eps",
}


def arguments_of(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration shapes the network."""
    return {key: as_tuple(config[key]) for key in ARGUMENTS[component].split() if key in config}


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of early VAE folders


def diffusers_places(name: str) -> list[ldm.Place]:
    """Names under which a folder may hold a tensor: today's first."""
    if name in ("weight", "bias"):
        return [ldm.Place(f"proj.{name}"), ldm.Place(f"projection.{name}")]
    is_vae_matrix = name.startswith(("encoder.", "decoder.")) and ".attentions." in name
    places = [ldm.Place(name, ldm.drop_kernel if is_vae_matrix else None)]
    for today, early in OLD_ATTENTION.items():
        if is_vae_matrix and f".{today}." in name:
            places.append(ldm.Place(name.replace(f".{today}.", f".{early}."), ldm.drop_kernel))
    return places


# Filling --------------------------------------------------------------------------------------------------------------


def build(description: Description) -> ViewModel:
    """The networks without their weights; they take no memory."""
    with torch.device("meta"):
        return ViewModel(description)


def networks_of(weights: Weights) -> ViewModel:
    """The networks that these weights are for; a WeightsError when they make none, or another family's."""
    told, where = weights.description, str(weights.path)
    try:
        refuse_odd(told)
        model = build(told)
    except Exception as error:  # the libraries have many ways to say that arguments make no network
        raise WeightsError("its networks cannot be built", where=where, remedy="fetch or convert it again") from error
    codec = told.vae["latent_channels"] if told.vae is not None else told.picture_channels
    codec *= told.patch**2
    taken, given = (told.unet["in_channels"], told.unet["out_channels"]), (2 * codec, codec)
    if taken != given:
        what = f"its UNet turns {taken[0]} channels into {taken[1]}, a Zero123 model {given[0]} into {given[1]}"
        raise WeightsError(what, where=where, remedy=REMEDY)
    if weights.kind == "ldm":
        refuse_strangers(weights, model.state_dict())
    return model


MAX_SIDE = 4096  # px


def refuse_odd(told: Description) -> None:
    """Raises something at what stands in a description and is none."""
    halvings = len(told.vae["block_out_channels"]) - 1 if told.vae is not None else 0
    numbers = [told.clip["projection_dim"], told.clip["image_size"], told.unet["cross_attention_dim"]]
    heads = told.unet.get("attention_head_dim", 8)
    numbers += heads if isinstance(heads, tuple) else [heads]
    if not (
        isinstance(told.family, str)
        and isinstance(told.licence, str)
        and told.tokens in ("pooled", "patches")
        and told.predicts in ("noise", "correction")
        and all(type(number) is int and number > 0 for number in (*numbers, told.size, told.patch))
        and told.size <= MAX_SIDE
        and told.size % (2**halvings * told.patch) == 0
        and type(told.latent_scale) in (int, float)
        and told.latent_scale > 0
        and (told.volume is None or (told.vae is None and told.volume.get("size") == told.size))
    ):
        raise ValueError(told)


Read = Callable[[Weights, str, Tensor, torch.dtype], Tensor]


def fill(weights: Weights, backend: Backend, watch: Watch, *, lean: bool, read: Read | None = None) -> ViewModel:
    """The networks with their weights, one tensor after the other, on the backend's device."""
    model = networks_of(weights)
    slots = model.state_dict()
    device = torch.device(backend.device)
    loaded = {}
    for done, (name, slot) in enumerate(slots.items()):
        there = torch.device("cpu") if lean and not name.startswith("projection.") else device
        tensor = (read or read_tensor)(weights, name, slot, DTYPES[backend.dtype]).to(there)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        loaded[name] = tensor
        if done % 100 == 0:
            watch(Progress("loading", done, len(slots), weights.path.name))
    model.load_state_dict(loaded, assign=True)
    places = model.clip.vision_model.embeddings
    places.position_ids = torch.arange(places.num_positions, device=device)[None]
    return model


def read_tensor(weights: Weights, name: str, slot: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as our network wants it; a WeightsError names one that does not fit."""
    found = weights.find(name)
    tensor = found.file.read(found.place.name)
    if found.place.change:
        tensor = found.place.change(tensor)
    if tensor.shape != slot.shape:
        raise WeightsError(
            f"the tensor {found.place.name} has the shape {tuple(tensor.shape)}, not {tuple(slot.shape)}",
            where=str(weights.path),
            remedy=REMEDY,
        )
    cast = tensor.to(dtype).contiguous()
    if cast.untyped_storage().nbytes() > cast.nbytes:  # a part of a larger tensor would keep all of it in memory
        cast = cast.clone()
    if dtype == torch.float16 and not torch.isfinite(cast).all():
        raise WeightsError(
            f"the tensor {found.place.name} does not fit into half precision",
            where=str(weights.path),
            remedy="try --dtype float32 or bfloat16",
        )
    return cast
