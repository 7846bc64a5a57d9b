"""The denoiser seam: condition once on a photo, then predict the noise in noisy latents at any pose.

Samplers and the 3D half see this and never a UNet, a scheduler or a checkpoint. Noise levels are timesteps of the
family's one schedule. Latents are in the scaled units in which noise has variance 1.
Letters: B latents, K context tokens, D their width, C channels, h and w of a latent, H and W of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..cameras import PoseKind, Viewpoint, relative_pose
from .volume import USUAL_HALF, Framing, Volume, VolumeDescription, VolumeNet, render

STEPS = 1000
POSE_NUMBERS = 4
MENDING = 400  # the timestep at which a volume's rendering is corrected
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Description:
    """Everything that weights do not say by themselves; it travels in the header of a compact file."""

    family: str  # what people call it, such as "zero123-xl"
    pose_kind: PoseKind | Literal["unknown"]  # what the fourth pose number means
    unet: dict[str, Any]  # arguments of UNet2DConditionModel
    clip: dict[str, Any]  # arguments of CLIPVisionConfig
    vae: dict[str, Any] | None  # arguments of AutoencoderKL; None: latents are pictures
    size: int = 256  # side of the pictures, px
    tokens: Literal["pooled", "patches"] = "pooled"  # one context token for the photo, or one for each patch
    predicts: Literal["noise", "correction"] = "noise"  # or what, added to what is concatenated, is the clean picture
    latent_scale: float = 0.18215  # a latent's units / the codec's
    licence: str = ""
    volume: dict[str, Any] | None = None  # arguments of VolumeDescription; None: the photo's latent is concatenated
    patch: int = 1  # the UNet takes a square of so many latents a side for one place with as many more channels

    @property
    def latent_side(self) -> int:
        return self.size // 2 ** (len(self.vae["block_out_channels"]) - 1) if self.vae else self.size

    @property
    def picture_channels(self) -> int:
        return 3 if self.vae else 4


def alphas_cumprod() -> Tensor:  # float64 (STEPS,)
    """The family's noise schedule: squares of evenly spaced roots."""
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, STEPS, dtype=torch.float64, device="cpu") ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class Condition:
    """A photo as a view model sees it. Poses are relative to where its camera stands."""

    embedding: Tensor  # (K, D), before the pose is joined to it
    concat: Tensor  # (C, h, w), what is joined to the noisy latent's channels
    viewpoint: Viewpoint
    volume: Volume | None = None  # predicted once; its rendering at the pose is joined instead


class ViewModel(nn.Module):
    """The networks of one view-conditioned diffusion model and how they are used together."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.unet = UNet2DConditionModel(**description.unet)
        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**description.clip))
        self.vae = AutoencoderKL(**description.vae) if description.vae else None
        self.volume = VolumeNet(VolumeDescription(**description.volume)) if description.volume else None
        width = description.clip["projection_dim"]
        self.projection = nn.Linear(width + POSE_NUMBERS, description.unet["cross_attention_dim"])
        self.alphas = alphas_cumprod()  # not a buffer: it stays in float64 on the CPU
        self.lean = False  # keep on the device only the network that is at work

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projection.weight.dtype

    def train(self, mode: bool = True) -> Self:
        """The volume net learns elsewhere, and shows here what it shows to everybody."""
        super().train(mode)
        if self.volume is not None:
            self.volume.eval()
        return self

    @property
    def certain(self) -> bool:
        """Whether the answer is one picture: then there is nothing to sample."""
        return self.volume is not None

    def at_work(self, *names: str) -> None:
        """Called before networks are used: in a lean model the others make room.

        But not the codec: the lift takes its gradient after other networks were at work, on the device where it was.
        """
        if not self.lean:
            return
        if self.vae is not None:
            self.vae.enable_slicing()
        for name in ("unet", "clip", "volume"):
            part = getattr(self, name)
            if part is not None and name not in names:
                part.to("cpu")
        for name in names:
            if getattr(self, name) is not None:
                getattr(self, name).to(self.device)

    # Pictures and latents

    @torch.no_grad()
    def condition(self, picture: Tensor, viewpoint: Viewpoint) -> Condition:  # (C, H, W) in [-1, 1]
        """What the model keeps of a photo, computed once."""
        picture = picture[None].to(self.device, torch.float32)
        assert picture.shape[1:] == (self.description.picture_channels, *[self.description.size] * 2), picture.shape
        self.at_work("clip")
        embedding = self.embed(picture)[0]
        self.at_work("vae", "volume")
        volume = self.volume(picture.to(self.dtype)) if self.volume else None
        return Condition(embedding, self.plain_latents(picture)[0], viewpoint, volume)

    def plain_latents(self, pictures: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, h, w)
        """Photos as they are joined to noisy latents: the codec's mode, and not scaled."""
        pictures = pictures.to(self.dtype)
        return pictures if self.vae is None else self.vae.encode(pictures).latent_dist.mode()

    def embed(self, picture: Tensor) -> Tensor:  # (B, C, H, W) in [-1, 1] -> (B, K, D)
        """The photo's context tokens, not normalised."""
        outputs = self.clip(pixel_values=clip_input(picture[:, :3], self.description.clip["image_size"]).to(self.dtype))
        if self.description.tokens == "pooled":
            return outputs.image_embeds[:, None]
        return self.clip.visual_projection(outputs.last_hidden_state[:, 1:])

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:  # (B, C, H, W) -> (B, C, h, w)
        """Latents of pictures, the gradient kept: a sample with `noise`, else the most likely."""
        if self.vae is None:
            return pictures.to(self.dtype)
        self.at_work("vae")
        posterior = self.vae.encode(pictures.to(self.dtype)).latent_dist
        latents = posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return latents * self.description.latent_scale

    def decode(self, latents: Tensor) -> Tensor:  # (B, C, h, w) -> float32 (B, C, H, W) in about [-1, 1]
        """Pictures of latents, the gradient kept."""
        latents = latents.to(self.device, self.dtype)
        if self.vae is None:
            return latents.float()
        self.at_work("vae")
        return self.vae.decode(latents / self.description.latent_scale).sample.float()

    # Noise

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at the noise levels `timesteps` (B,)."""
        alpha = self.alpha(timesteps)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def alpha(self, timesteps: Tensor) -> Tensor:  # int (B,) -> float32 (B, 1, 1, 1)
        return self.alphas[timesteps.cpu()].to(self.device, torch.float32)[:, None, None, None]

    def predict(
        self,
        condition: Condition,
        latents: Tensor,  # (B, C, h, w), noisy
        timesteps: Tensor,  # int (B,)
        poses: Sequence[Viewpoint],  # B of them
        guidance: float = 1.0,
    ) -> Tensor:  # float32 (B, C, h, w)
        """The noise in `latents`. Guidance 1 is the condition alone, 0 no condition; else both, in one pass."""
        context = self.context(condition, poses)
        concat = self.concat_at(condition, poses)
        if guidance == 1:
            return self.denoise(latents, timesteps, context, concat)
        nothing, no_picture = torch.zeros_like(context), torch.zeros_like(concat)
        if guidance == 0:
            return self.denoise(latents, timesteps, nothing, no_picture)
        # Without a condition the context is zero after the projection: photo, pose and bias all vanish.
        both = self.denoise(
            torch.cat([latents, latents]),
            torch.cat([timesteps, timesteps]),
            torch.cat([nothing, context]),
            torch.cat([no_picture, concat]),
        )
        without, conditioned = both.chunk(2)
        return without + guidance * (conditioned - without)

    def picture_at(self, condition: Condition, poses: Sequence[Viewpoint]) -> Tensor:  # float32 (B, C, h, w)
        """The one answer of a model that is certain."""
        return self.mend(self.concat_at(condition, poses), self.context(condition, poses))

    def mend(self, shown: Tensor, context: Tensor) -> Tensor:  # (B, C, h, w), (B, K, D') -> float32 (B, C, h, w)
        """What a volume shows, corrected in one pass. The network has learnt to be given just that under noise of any
        level; noise itself has nothing to tell it, so there is none."""
        times = torch.full((len(shown),), MENDING)
        alpha = self.alpha(times)
        faded = alpha.sqrt() * shown.float()
        return (faded - (1 - alpha).sqrt() * self.denoise(faded, times, context, shown)) / alpha.sqrt()

    def concat_at(self, condition: Condition, poses: Sequence[Viewpoint]) -> Tensor:  # (B, C, h, w)
        """What is joined to the noisy latents: the photo's own latent, or the photo's volume as seen from the poses."""
        if condition.volume is None:
            return condition.concat[None].expand(len(poses), -1, -1, -1)
        volume = Volume(*(part.expand(len(poses), *part.shape[1:]) for part in vars(condition.volume).values()))
        return self.see(volume, look_from([condition.viewpoint] * len(poses)), look_from(poses))

    def see(self, volume: Volume, photo: Framing, target: Framing) -> Tensor:  # (B, C, h, w)
        """Photos' volumes as the target's cameras see them, as latents."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # bfloat16 cannot tell pixels apart
            seen = pick_render(self.device)(volume, photo, target, self.description.latent_side)
        return torch.cat([seen[:, :3], seen[:, 3:] * 2 - 1], 1).to(self.dtype)

    def context(self, condition: Condition, poses: Sequence[Viewpoint]) -> Tensor:  # (B, K, D')
        """The photo's tokens, each joined with the pose and projected."""
        kind = self.description.pose_kind
        assert kind != "unknown"
        numbers = [relative_pose(kind, condition.viewpoint, pose) for pose in poses]
        pose = torch.tensor(numbers, dtype=torch.float64)
        return self.join(condition.embedding[None].expand(len(poses), -1, -1), pose)

    def join(self, tokens: Tensor, numbers: Tensor) -> Tensor:  # (B, K, D), (B, 4) -> (B, K, D')
        """Context of tokens and relative poses."""
        pose = numbers.to(self.device, self.dtype)[:, None].expand(-1, tokens.shape[1], -1)
        return self.projection(torch.cat([tokens, pose], -1))

    def answer(self, latents: Tensor, timesteps: Tensor, context: Tensor, concat: Tensor) -> Tensor:
        """What one pass of the network predicts, float32."""
        self.at_work("unet")
        stacked = torch.cat([latents.to(self.device, self.dtype), concat], 1)
        if self.description.patch > 1:
            stacked = F.pixel_unshuffle(stacked, self.description.patch)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        answer = self.unet(stacked, timesteps.to(self.device), context, return_dict=False)[0].float()
        return F.pixel_shuffle(answer, self.description.patch) if self.description.patch > 1 else answer

    def denoise(self, latents: Tensor, timesteps: Tensor, context: Tensor, concat: Tensor) -> Tensor:
        """One pass of the network, its answer turned into noise."""
        answer = self.answer(latents, timesteps, context, concat)
        if self.description.predicts == "noise":
            return answer
        alpha = self.alpha(timesteps)
        return (latents.to(answer) - alpha.sqrt() * (concat.float() + answer)) / (1 - alpha).sqrt()


def pick_render(device: torch.device) -> Callable[[Volume, Framing, Framing, int], Tensor]:
    """The renderer that is fastest there."""
    if device.type != "cpu":
        return render
    from .rays import render_numba  # numba takes its time to load

    return render_numba


def look_from(viewpoints: Sequence[Viewpoint]) -> Framing:
    """Cameras at these viewpoints, framed as a common photo."""
    poses = torch.tensor([[view.azimuth_deg, view.elevation_deg, view.distance] for view in viewpoints])
    return Framing(poses, torch.tensor([[0.0, 0.0, USUAL_HALF]]).expand(len(poses), -1))


def clip_input(picture: Tensor, side: int) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, 3, side, side)
    """CLIP's own scaling after the original's resize: bicubic on aligned corners, without antialiasing."""
    resized = F.interpolate(picture.float(), (side, side), mode="bicubic", align_corners=True, antialias=False)
    mean = torch.tensor(CLIP_MEAN, device=picture.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=picture.device)[:, None, None]
    return ((resized + 1) / 2 - mean) / std


# One context token ----------------------------------------------------------------------------------------------------


class OneToken:
    """Cross-attention to a single token: the softmax over one is 1, so the answer is the token's value everywhere."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        assert encoder_hidden_states.shape[1] == 1, encoder_hidden_states.shape
        return attn.to_out[0](attn.to_v(encoder_hidden_states))  # (B, 1, D), broadcast over the places


def fold_cross_attention(model: ViewModel) -> int:
    """Replaces cross-attention by what it comes to when the context is one token, exactly; how many were replaced.

    Queries, keys and the norm before them are dropped with their weights.
    """
    folded = 0
    if model.description.tokens != "pooled":
        return folded
    for block in model.unet.modules():
        attention = getattr(block, "attn2", None)
        if attention is not None and hasattr(block, "norm2"):
            attention.set_processor(OneToken())
            attention.to_q = attention.to_k = nn.Identity()
            block.norm2 = nn.Identity()
            folded += 1
    return folded
