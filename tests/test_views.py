"""The views stage and its place in the cache: what is computed once, what is an entry of its own, what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from conftest import paint_disc

from zero123cli import models, pipeline
from zero123cli.artifacts import Ask, Cutout, PhotoCamera, View, Views
from zero123cli.cache import Cache, Kept, entries, file_digest, open_cache
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion.sampling import sample, seed_of
from zero123cli.diffusion.viewmodel import Condition, Description, ViewModel, fold_cross_attention
from zero123cli.errors import DivergedError, UnavailableError, UsageError
from zero123cli.machine import Backend
from zero123cli.models import KnownModel
from zero123cli.pipeline import Prior
from zero123cli.settings import ModelSettings
from zero123cli.stages.views import condition, sample_views, to_picture, to_pixels
from zero123cli.watch import Caution, Progress, Watch, silent


@pytest.fixture(scope="module")
def model() -> ViewModel:
    model = small.make_model()
    fold_cross_attention(model)
    return model


def make_cutout(rgba: np.ndarray | None = None) -> Cutout:
    rgba = paint_disc(alpha=True, height=96, width=96) if rgba is None else rgba
    return Cutout(rgba, 0, 0, 96, 96, 96, 0.6, "alpha")


def kept(cutout: Cutout | None = None, key: str = "c" * 64) -> Kept[Cutout]:
    return Kept(cutout or make_cutout(), key, False, 0.0, ())


def ask(azimuth: float = 90.0, **changes: Any) -> Ask:
    return replace(Ask(azimuth, 0.0, 0.0, 0, 0, "ddim", 4, 3.0, 1.0), **changes)


RING = [ask(45.0 * k) for k in range(8)]


@dataclass
class Counted:
    """A model with everything that is asked of it."""

    model: ViewModel
    loads: int = 0
    conditions: int = 0
    batches: list[int] = field(default_factory=list)

    def load(self, watch: Watch) -> ViewModel:
        self.loads += 1
        return self.model

    def prior(self, digest: str = "m" * 64, backend: Backend = small.CPU) -> Prior:
        return Prior("small", digest, backend, self.load)


@pytest.fixture
def counted(model: ViewModel, monkeypatch: pytest.MonkeyPatch) -> Counted:
    seen = Counted(model)
    look, denoise = ViewModel.condition, ViewModel.denoise

    def condition(self: ViewModel, *given: Any) -> Condition:
        seen.conditions += 1
        return look(self, *given)

    def counted_denoise(self: ViewModel, latents: torch.Tensor, *given: Any) -> torch.Tensor:
        seen.batches.append(len(latents) // 2)  # guided: both branches in one pass
        return denoise(self, latents, *given)

    monkeypatch.setattr(ViewModel, "condition", condition)
    monkeypatch.setattr(ViewModel, "denoise", counted_denoise)
    return seen


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return open_cache(tmp_path / "cache")


def draw(
    counted: Counted, cache: Cache, asks: list[Ask], batch: int = 1, watch: Watch = silent, **changes: Any
) -> list[Kept[View]]:
    prior = counted.prior(**changes)
    seen = pipeline.views(kept(), PhotoCamera(0.0), prior, cache, watch)
    return list(pipeline.sampled(seen, asks, prior, cache, batch, watch))


# The picture that the model sees --------------------------------------------------------------------------------------


def described(size: int, *, pixels: bool = False) -> Description:
    return replace(small.PIXELS if pixels else small.SMALL, size=size)


def test_the_cutout_lies_on_white() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (255, 0, 0, 255)
    rgba[:8] = (9, 9, 9, 0)  # colour under nothing
    rgba[48:] = (0, 0, 0, 128)
    picture = to_picture(make_cutout(rgba), described(64))
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.float32
    assert (picture[:, :16] == 1).all(), "white, whatever colour is hidden there"
    assert picture[:, 30, 30].tolist() == [1, -1, -1]
    assert picture[:, 60, 5].tolist() == pytest.approx([1 - 2 * 128 / 255] * 3, abs=1e-6), "soft edges are mixed"


@pytest.mark.parametrize("size", [16, 32, 96, 256])
def test_the_cutout_is_brought_to_the_size_of_the_model(size: int) -> None:
    picture = to_picture(make_cutout(), described(size))
    assert picture.shape == (3, size, size)
    assert picture.min() >= -1 and picture.max() <= 1
    full = to_picture(make_cutout(), described(96))
    assert torch.allclose(picture.mean((1, 2)), full.mean((1, 2)), atol=0.02)


@pytest.mark.parametrize("size", [32, 96])
def test_a_model_that_knows_alpha_is_given_it(size: int) -> None:
    picture = to_picture(make_cutout(), described(size, pixels=True))
    assert picture.shape == (4, size, size)
    assert torch.equal(picture[:3], to_picture(make_cutout(), described(size)))
    assert picture[3, 0, 0] == -1 and picture[3, size // 2, size // 2] == 1


def test_shrinking_averages() -> None:
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[::2, :, :3] = 0
    picture = to_picture(make_cutout(rgba), described(32))
    assert picture.abs().max() < 0.01, "grey, and no stripes"


@pytest.mark.parametrize("elevation", [0.0, 25.0])
def test_conditioning_is_what_the_model_makes_of_the_picture(model: ViewModel, elevation: float) -> None:
    views = condition(make_cutout(), PhotoCamera(elevation), model)
    seen = model.condition(to_picture(make_cutout(), model.description), Viewpoint(0, elevation))
    assert np.array_equal(views.embedding, seen.embedding) and np.array_equal(views.concat, seen.concat)
    assert (views.photo_elevation_deg, views.distance) == (elevation, 1.85)
    assert views.embedding.dtype == views.concat.dtype == np.float32


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(model: ViewModel) -> Views:
    return condition(make_cutout(), PhotoCamera(20.0), model)


def test_a_view_is_what_the_sampler_gives_at_that_pose(model: ViewModel, seen: Views) -> None:
    wanted = ask(70, elevation_deg=-30.0, distance=0.25, number=3, seed=9)
    (view,) = sample_views(seen, [wanted], model, silent)
    pose = Viewpoint(70, 20 - 30, 1.85 + 0.25)
    photo = Condition(torch.from_numpy(seen.embedding), torch.from_numpy(seen.concat), Viewpoint(0, 20))
    how: dict[str, Any] = {"sampler": "ddim", "steps": 4, "guidance": 3.0, "eta": 1.0}
    *_, latents = sample(model, photo, [pose], [seed_of(9, pose, 3)], **how)
    expected = ((model.decode(latents)[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert view.pixels.dtype == np.uint8 and view.pixels.shape == (32, 32, 3)
    assert np.abs(view.pixels.astype(int) - expected).max() <= 1
    assert (view.azimuth_deg, view.elevation_deg, view.distance, view.number) == (70, -30, 0.25, 3)


def test_pixels_are_rounded_and_kept_within_their_range() -> None:
    levels = torch.tensor([-3, -1, -0.5, 0.0, 1 / 255, 1, 7]).expand(3, 1, 7)
    assert to_pixels(levels)[0, :, 0].tolist() == [0, 0, 64, 128, 128, 255, 255]


def test_a_picture_with_alpha_is_written_in_the_objects_own_colours() -> None:
    """Put on white once more it is what the model meant."""
    chance = np.random.default_rng(0)
    own, alpha = chance.random((3, 8, 8)), np.linspace(0, 1, 64).reshape(1, 8, 8)
    meant = torch.from_numpy(np.concatenate([own * alpha + 1 - alpha, alpha])).float() * 2 - 1
    pixels = to_pixels(meant).astype(float) / 255
    again = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    assert np.abs(again - (own * alpha + 1 - alpha).transpose(1, 2, 0)).max() < 0.01
    clear = pixels[..., 3] > 0.5
    assert np.abs(pixels[..., :3] - own.transpose(1, 2, 0))[clear].max() < 0.01


@pytest.mark.parametrize("changes", [{"number": 1}, {"seed": 1}, {"elevation_deg": 5.0}, {"distance": 0.1}], ids=str)
def test_another_ask_is_another_picture(model: ViewModel, seen: Views, changes: dict[str, Any]) -> None:
    one, other = (sample_views(seen, [which], model, silent)[0] for which in (ask(), ask(**changes)))
    assert np.abs(one.pixels.astype(int) - other.pixels).max() > 8


def test_minus_ninety_is_two_hundred_and_seventy(model: ViewModel, seen: Views) -> None:
    one, other = (sample_views(seen, [ask(azimuth)], model, silent)[0] for azimuth in (-90, 270))
    assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("sampler", ["ddim-original", "ddim", "unipc"])
@pytest.mark.parametrize("steps", [3, 5, 13])
def test_progress_counts_the_steps_that_are_really_made(
    model: ViewModel, seen: Views, sampler: str, steps: int
) -> None:
    told: list[Progress | Caution] = []
    calls, stop = small.count_calls(model.unet)
    sample_views(seen, [ask(sampler=sampler, steps=steps)], model, told.append)
    stop()
    progress = [message for message in told if isinstance(message, Progress)]
    assert [message.done for message in progress][-len(calls) :] == list(range(1, len(calls) + 1))
    assert {message.total for message in progress} == {len(calls)}, "the last step is the total"


def test_a_stable_model_refuses_a_distance(seen: Views) -> None:
    stable = small.make_model(replace(small.SMALL, pose_kind="stable"))
    assert len(sample_views(seen, [ask()], stable, silent)) == 1
    with pytest.raises(UsageError) as caught:
        sample_views(seen, [ask(), ask(distance=0.1)], stable, silent)
    assert caught.value.exit_code == 2 and "distance" in str(caught.value)


@pytest.mark.parametrize("where", ["decoder", "unet"])
def test_a_picture_of_no_numbers_is_never_handed_on(counted: Counted, cache: Cache, where: str) -> None:
    broken = small.make_model()
    assert broken.vae is not None
    bias = broken.vae.decoder.conv_out.bias if where == "decoder" else broken.unet.conv_out.bias
    bias.fill_(float("nan"))
    counted.model = broken
    with pytest.raises(DivergedError) as caught:
        draw(counted, cache, [ask()])
    assert caught.value.exit_code == 81 and caught.value.remedy
    assert cache.root and {entry.stage for entry in entries(cache.root)} == {"views"}


# The cache ------------------------------------------------------------------------------------------------------------


def test_a_photo_is_put_before_the_model_once(counted: Counted, cache: Cache) -> None:
    draw(counted, cache, [ask(90)])
    assert (counted.conditions, counted.batches) == (1, [1] * 4)
    (again,) = draw(counted, cache, [ask(180)])
    assert counted.conditions == 1 and not again.hit, "the second view has the first one's conditioning"
    pipeline.views(kept(key="d" * 64), PhotoCamera(0.0), counted.prior(), cache, silent)
    assert counted.conditions == 2, "another cutout is another photo"
    pipeline.views(kept(), PhotoCamera(10.0), counted.prior(), cache, silent)
    assert counted.conditions == 3, "from another height it is another conditioning"


def test_each_view_is_an_entry_of_its_own(counted: Counted, cache: Cache) -> None:
    drawn = draw(counted, cache, RING)
    assert cache.root
    stages = sorted(entry.stage for entry in entries(cache.root, check=True) if not entry.damage)
    assert stages == ["view"] * 8 + ["views"]
    assert len({view.key for view in drawn}) == 8
    assert [view.artifact.azimuth_deg for view in drawn] == [one.azimuth_deg for one in RING]
    counted.loads = 0
    again = draw(counted, cache, list(reversed(RING)))
    assert counted.loads == 0 and all(view.hit for view in again), "nothing is loaded for what is kept"
    for view, before in zip(again, reversed(drawn), strict=True):
        assert view.key == before.key and np.array_equal(view.artifact.pixels, before.artifact.pixels)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_only_what_is_missing_is_sampled(counted: Counted, cache: Cache, batch: int) -> None:
    draw(counted, cache, [RING[k] for k in (0, 3, 6)], batch)
    counted.batches.clear()
    drawn = draw(counted, cache, RING, batch)
    assert [view.hit for view in drawn] == [k in (0, 3, 6) for k in range(8)]
    assert sum(counted.batches) == 5 * 4, "five views of four steps"
    assert max(counted.batches) == min(batch, 5)


@pytest.mark.parametrize("sampler", [pytest.param("ddim-original", marks=pytest.mark.slow), "ddim"])
def test_a_view_is_the_same_whatever_the_batch(
    counted: Counted, tmp_path: Path, sampler: str, model: ViewModel
) -> None:
    asks = [replace(one, sampler=sampler, number=k % 2) for k, one in enumerate(RING)]
    alone = draw(counted, Cache(None), asks, 1)
    for batch in (2, 3, 8, 100):
        for k, view in enumerate(draw(counted, open_cache(tmp_path / f"{batch}"), asks, batch)):
            difference = view.artifact.pixels.astype(int) - alone[k].artifact.pixels
            assert np.abs(difference).max() <= 1
            assert (view.artifact.azimuth_deg, view.artifact.number) == (asks[k].azimuth_deg, asks[k].number)


@pytest.mark.parametrize(
    "changes", [{"sampler": "ddim-original"}, {"steps": 7}, {"guidance": 1.5}, {"eta": 0.0}], ids=str
)
def test_views_that_differ_in_how_are_not_sampled_as_if_they_agreed(
    counted: Counted, cache: Cache, changes: dict[str, Any]
) -> None:
    asks = [ask(90), ask(180, **changes), ask(270)]
    alone = [draw(counted, Cache(None), [one])[0] for one in asks]
    for view, expected in zip(draw(counted, cache, asks, batch=3), alone, strict=True):
        assert np.abs(view.artifact.pixels.astype(int) - expected.artifact.pixels).max() <= 1


@pytest.mark.parametrize("batch", [1, 4])
def test_the_same_view_twice_is_the_same_picture(counted: Counted, cache: Cache, batch: int) -> None:
    for place in (cache, Cache(None)):
        drawn = draw(counted, place, [ask(90), ask(180), ask(90)], batch)
        assert np.array_equal(drawn[0].artifact.pixels, drawn[2].artifact.pixels)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError])
def test_what_was_finished_before_a_stop_is_kept(counted: Counted, cache: Cache, stop: type[BaseException]) -> None:
    def watch(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and len(counted.batches) == 3 * 4 + 2:
            raise stop

    with pytest.raises(stop):
        draw(counted, cache, RING, watch=watch)
    assert cache.root and not list(cache.root.glob("drafts/*"))
    drawn = draw(counted, cache, RING)
    assert [view.hit for view in drawn] == [True] * 3 + [False] * 5


def test_a_view_is_kept_before_the_next_is_begun(counted: Counted, cache: Cache) -> None:
    prior = counted.prior()
    seen = pipeline.views(kept(), PhotoCamera(0.0), prior, cache, silent)
    assert cache.root
    for k, _ in enumerate(pipeline.sampled(seen, RING[:3], prior, cache, 1, silent), 1):
        assert len(counted.batches) == 4 * k
        assert sum(entry.stage == "view" for entry in entries(cache.root)) == k


@pytest.mark.parametrize(
    "changes",
    [{"digest": "n" * 64}, {"backend": Backend("cpu", "bfloat16", "CPU")}, {"backend": Backend("mps", "float32", "")}],
    ids=["another model", "another precision", "another device"],
)
def test_views_of_another_model_precision_or_device_are_others(
    counted: Counted, cache: Cache, changes: dict[str, Any]
) -> None:
    (one,), (other,) = draw(counted, cache, [ask()]), draw(counted, cache, [ask()], **changes)
    assert one.key != other.key and not other.hit and counted.conditions == 2


def test_which_of_several_gpus_it_was_does_not_matter() -> None:
    def prior(device: str) -> Prior:
        return Prior("small", "", Backend(device, "float16", ""), lambda watch: pytest.fail("loaded"))

    assert prior("cuda:0").device == prior("cuda:1").device != prior("cpu").device


def test_without_a_cache_everything_is_made_and_nothing_kept(counted: Counted, tmp_path: Path) -> None:
    for _ in range(2):
        assert not any(view.hit for view in draw(counted, Cache(None), RING[:2], 2))
    assert counted.conditions == 2 and counted.batches == [2] * 8
    assert not list(tmp_path.iterdir())


def test_refreshing_makes_everything_anew(counted: Counted, cache: Cache) -> None:
    before = draw(counted, cache, RING[:2])
    after = draw(counted, replace(cache, refresh=True), RING[:2])
    assert not any(view.hit for view in after) and counted.conditions == 2
    assert [view.key for view in after] == [view.key for view in before]


def test_a_damaged_view_is_drawn_again(counted: Counted, cache: Cache) -> None:
    drawn = draw(counted, cache, RING[:3])
    assert cache.root
    (folder,) = [entry.folder for entry in entries(cache.root) if entry.key == drawn[1].key]
    (folder / "arrays.safetensors").write_bytes(b"damage")
    told: list[Progress | Caution] = []
    again = draw(counted, cache, RING[:3], 3, told.append)
    assert [view.hit for view in again] == [True, False, True]
    assert np.array_equal(again[1].artifact.pixels, drawn[1].artifact.pixels)
    assert [message.code for message in told if isinstance(message, Caution)] == ["cache-damaged"]


# Which model ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, model: ViewModel) -> Path:
    return small.write_compact(tmp_path_factory.mktemp("model") / "small.safetensors", small.make_model())


def pick(name: str | Path, cache: Cache, **settings: Any) -> Prior:
    return pipeline.pick_prior(ModelSettings(name=str(name), **settings), small.CPU, cache)


def test_a_model_is_known_by_its_content(file: Path, cache: Cache, tmp_path: Path) -> None:
    copied = tmp_path / "another name.bin"
    copied.write_bytes(file.read_bytes())
    assert pick(file, cache).digest == pick(copied, cache).digest
    other = small.write_compact(tmp_path / "other.safetensors", small.make_model(seed="other"))
    assert pick(other, cache).digest != pick(file, cache).digest
    assert pick(file, cache, pose_kind="stable").digest != pick(file, cache, pose_kind="original").digest


def test_a_folder_is_known_by_all_that_shapes_its_networks(cache: Cache, tmp_path: Path, model: ViewModel) -> None:
    folder = small.write_folder(tmp_path / "pipeline", small.make_model())
    digests = [pick(folder, cache).digest]
    for part, change in (("unet/config.json", b"{}"), ("vae/diffusion_pytorch_model.safetensors", b"x")):
        (folder / part).write_bytes(change)
        digests.append(pick(folder, cache).digest)
    (folder / "README.md").write_text("words")
    assert pick(folder, cache).digest == digests[-1]
    assert len(set(digests)) == 3


def test_a_model_is_loaded_when_it_is_needed_and_once(file: Path, cache: Cache) -> None:
    prior = pick(file, cache)
    told: list[Any] = []
    first = prior.load(told.append)
    assert told and prior.load(lambda message: pytest.fail("loaded again")) is first
    assert first.description.family == "small"


@pytest.mark.parametrize("kind", ["original", "stable"])
def test_known_weights_are_told_by_their_digest(
    cache: Cache, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.write_ldm(tmp_path / "renamed.safetensors", small.publish(small.make_model()))
    with pytest.raises(UsageError, match="pose"):
        pick(path, cache).load(silent)
    known = KnownModel("mine", kind, "MIT", sha256=file_digest(cache, path).sha256)
    monkeypatch.setattr(models, "KNOWN", {"mine": known})
    assert pick(path, cache).load(silent).description.pose_kind == kind


def test_no_model_an_unknown_one_and_one_that_is_not_installed(cache: Cache) -> None:
    with pytest.raises(UsageError, match="--model") as none:
        pick("", cache)
    assert "zero123 models list" in none.value.remedy
    with pytest.raises(UsageError) as unknown:
        pick("zero123-xxl", cache)
    assert "zero123-xl" in unknown.value.remedy
    with pytest.raises(UnavailableError) as missing:
        pick("zero123-xl", cache)
    assert missing.value.exit_code == 69 and "zero123 models pull zero123-xl" in missing.value.remedy


def test_asking_whether_views_are_kept_needs_no_network(counted: Counted, cache: Cache) -> None:
    from test_cutout import photo_of

    from zero123cli.cutters import CLASSICAL
    from zero123cli.settings import CutoutSettings

    photo, settings, prior = photo_of(paint_disc(alpha=True)), CutoutSettings(size=64), counted.prior()
    camera = PhotoCamera(0.0)

    def has(asks: list[Ask]) -> bool:
        return pipeline.has_views(photo, settings, CLASSICAL, camera, asks, prior, cache)

    assert not has(RING[:2])
    cut = pipeline.cutout(photo, settings, CLASSICAL, cache, silent)
    seen = pipeline.views(cut, camera, prior, cache, silent)
    draws: Callable[[list[Ask]], Any] = lambda asks: list(pipeline.sampled(seen, asks, prior, cache, 1, silent))  # noqa: E731
    draws(RING[:2])
    assert has(RING[:2]) and not has(RING[:3])
