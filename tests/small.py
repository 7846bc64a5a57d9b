"""A view model that is small enough to run in milliseconds, and every layout that its weights can lie in.

All its weights are numbers that half precision holds exactly: a file of any precision makes the same model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from golden import make_tensor, schedule, write_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import ldm
from zero123cli.diffusion.viewmodel import Condition, Description, ViewModel
from zero123cli.machine import Backend

torch.set_num_threads(1)  # on busy cores a second thread makes such small networks thirty times slower

CPU = Backend("cpu", "float32", "CPU")
SIZE = 32  # px
POSES = (Viewpoint(30, 10), Viewpoint(-100, -20, 1.6))
TIMES = torch.tensor([40, 900])

UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CLIP: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 12,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 256,
}
SMALL = Description("small", "original", UNET, CLIP, VAE, size=SIZE)
PIXELS = replace(SMALL, vae=None)
PATCHES = replace(SMALL, tokens="patches")


def make_model(description: Description = SMALL, seed: str = "") -> ViewModel:
    """The same numbers for the same seed, none of them at a value that hides a mistake (no zeros, no ones)."""
    with torch.device("meta"):
        model = ViewModel(description)
    state = {name: weights(seed + name, tuple(slot.shape)) for name, slot in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    embeddings = model.clip.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return model.eval().requires_grad_(False)


def weights(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(make_tensor(name, list(shape))).half().float()


def with_other_unet(model: ViewModel, seed: str = "raw ") -> ViewModel:
    """The same model but for its UNet, as raw weights differ from averaged ones."""
    other = make_model(model.description)
    other.unet.load_state_dict(make_model(model.description, seed).unet.state_dict())
    return other


def picture_of(channels: int = 3, side: int = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def answers(model: ViewModel, guidance: float = 3.0) -> dict[str, Tensor]:
    """What a model says to fixed questions, one for each of its networks."""
    picture = picture_of(model.description.picture_channels)[None].to(model.dtype)
    embedding, latents = model.embed(picture), model.encode(picture)
    seen = Condition(embedding[0], latents[0] / model.description.latent_scale, Viewpoint(0, 5))
    noisy = noise_of(len(POSES), *latents.shape[1:])
    return {
        "embedding": embedding,
        "latents": latents,
        "picture": model.decode(latents),
        "noise": model.predict(seen, noisy, TIMES, POSES, guidance),
    }


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def agree(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], limit: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert error(ours[name], theirs[name]) < limit, name


# The published layout -------------------------------------------------------------------------------------------------


def publish(model: ViewModel, raw: ViewModel | None = None) -> dict[str, Tensor]:
    """The state dict of a training run whose averaged weights are `model`'s; without `raw` nothing was averaged."""
    told = model.description
    assert told.vae is not None
    state: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in (raw or model).state_dict().items():
        published = ldm.place(name, told.unet, told.vae, ema=False).name
        if "in_proj" in published:
            thirds.setdefault(published, {})[name.split("self_attn.")[1][0]] = tensor
        elif name == "clip.visual_projection.weight":
            state[published] = tensor.T.contiguous()
        elif "mid.attn_1" in published and tensor.ndim == 2:
            state[published] = tensor[..., None, None]
        else:
            state[published] = tensor
    state |= {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in thirds.items()}
    if raw:
        for name, tensor in model.unet.state_dict().items():
            state[ldm.place(f"unet.{name}", told.unet, told.vae, ema=True).name] = tensor
    return {**leftovers(), **state}


def leftovers() -> dict[str, Tensor]:
    """What lies in published files and nobody needs: the noise schedule, the counters, what remains of CLIP's text."""
    text = "cond_stage_model.model."
    made = {name: torch.as_tensor(value) for name, value in schedule().items()}
    return {
        **made,
        text + "positional_embedding": weights("positions", (7, 24)),
        text + "text_projection": weights("text", (24, 12)),
        text + "logit_scale": torch.tensor(4.6),
        text + "token_embedding.weight": weights("words", (50, 24)),
        text + "ln_final.weight": weights("weight", (24,)),
        text + "ln_final.bias": weights("bias", (24,)),
    }


def write_ldm(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A .ckpt as Lightning wrote it, or a .safetensors."""
    if path.suffix == ".ckpt":
        write_checkpoint(path, dict(state))
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


# Our compact layout ---------------------------------------------------------------------------------------------------


def write_compact(path: Path, model: ViewModel, **changes: Any) -> Path:
    """By the safetensors library and not by ours; `changes` are made to the description in the header."""
    header = json.dumps(asdict(replace(model.description, **changes)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, {"zero123": header})
    return path


# Diffusers folders ----------------------------------------------------------------------------------------------------

PROJECTIONS = {  # pipeline class -> folder, class and prefix of the projection
    "Zero123Pipeline": ("clip_camera_projection", "CLIPCameraProjection", "proj."),
    "Zero1to3StableDiffusionPipeline": ("cc_projection", "CCProjection", "projection."),
}
EARLY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_folder(
    folder: Path,
    model: ViewModel,
    pipeline: str = "Zero123Pipeline",
    *,
    variant: str = "",
    suffix: str = ".safetensors",
    early: bool = False,
    parts: Sequence[str] = ("unet", "vae", "image_encoder", "projection"),
) -> Path:
    """A pipeline as its class would have saved it; `early` gives the names and shapes of the first diffusers."""
    told = model.description
    assert told.vae is not None
    projection, projector, prefix = PROJECTIONS[pipeline]
    clip = model.clip.state_dict()
    if early:
        clip["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    sizes = {"embedding_dim": told.clip["projection_dim"], "additional_embeddings": 4}
    components: dict[str, tuple[str, dict[str, Any], dict[str, Tensor]]] = {
        "unet": ("UNet2DConditionModel", told.unet | {"act_fn": "silu", "mid_block_scale_factor": 1}, {}),
        "vae": ("AutoencoderKL", told.vae | {"act_fn": "silu", "scaling_factor": 0.18215}, {}),
        "image_encoder": ("CLIPVisionModelWithProjection", told.clip | {"layer_norm_eps": 1e-05, "dropout": 0.0}, clip),
        "projection": (projector, sizes, {}),
    }
    components["unet"][2].update(model.unet.state_dict())
    components["vae"][2].update(dict(early_names(model.vae.state_dict()) if early else model.vae.state_dict()))
    components["projection"][2].update({prefix + name: w for name, w in model.projection.state_dict().items()})
    for part in parts:
        kind, config, state = components[part]
        place = folder / (projection if part == "projection" else part)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.17.1", **config}))
        stem = {".bin": "pytorch_model", ".safetensors": "model"}[suffix] if part == "image_encoder" else ""
        name = f"{stem or 'diffusion_pytorch_model'}{variant}{suffix}"
        half = "fp16" in variant
        state = {
            name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in state.items()
        }
        torch.save(state, place / name) if suffix == ".bin" else save_file(state, place / name)
    index = {"_class_name": pipeline, projection: ["x", projector], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def early_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Of the VAE's attention, before it was renamed."""
    for name, tensor in state.items():
        for today, early in EARLY.items():
            if "mid_block.attentions" in name:
                name = name.replace(f".{today}.", f".{early}.")
        yield name, tensor


def count_calls(module: torch.nn.Module) -> tuple[list[int], Callable[[], None]]:
    """The batch size of each call of a network from now on, and how to stop counting."""
    batches: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    return batches, hook.remove
