"""`zero123 models`, run as a program against a stand-in for the hub and for plain servers on 127.0.0.1."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TIME_OUT, Finished, Program, environment
from test_fetching import COMMIT, DATA, StandIn, stand_in

from zero123cli import models
from zero123cli.errors import UsageError

server = pytest.fixture(stand_in)

HUB = ("HF_HOME", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE")
FOLDER = {
    "model_index.json": b'{"_class_name": "Z", "unet": ["diffusers", "U"], "safety_checker": [null, null]}',
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": DATA[:1_000_000],
    "unet/diffusion_pytorch_model.fp16.safetensors": DATA[:500_000],
    "README.md": b"read me",
}


class Shop:
    """The program with tiny weights in its table, and the servers that have them."""

    def __init__(self, program: Program, server: StandIn, home: Path) -> None:
        self.program = program
        self.server = server
        self.hub_cache = home / "hf" / "hub"
        self.weights = home / "data" / "zero123" / "weights"
        self.env: dict[str, str | None] = {
            **dict.fromkeys(HUB),
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(home / "hf"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        server.put("/plain.ckpt", DATA)
        server.put("/tinycut.onnx", DATA)
        self.stored = server.put_repo("lab/weights", {"a.ckpt": DATA, "b.ckpt": DATA[::-1]})
        self.parts = server.put_repo("lab/folder", FOLDER)
        self.script = f"""
        import hashlib
        from zero123cli import fetching, models
        from zero123cli.models import CutterWeights, KnownModel
        fetching.PAUSE = 0.001
        models.KNOWN.clear()
        models.EMBEDDED.clear()
        for model in (
            KnownModel("plain", "original", "MIT", file="plain.ckpt", url="{server.url}/plain.ckpt", size={len(DATA)},
                       sha256="{models_digest(DATA)}"),
            KnownModel("undigested", "original", "", file="plain.ckpt", url="{server.url}/plain.ckpt"),
            KnownModel("hub-a", "original", "MIT", "lab/weights", "a.ckpt"),
            KnownModel("hub-b", "stable", "Research only", "lab/weights", "b.ckpt", non_commercial=True),
            KnownModel("folder", "original", "", "lab/folder", variants=("fp16", "")),
            KnownModel("other", "original", "", "lab/weights", "a.ckpt", sha256="{"0" * 64}"),
            KnownModel("nowhere", "original", "", "lab/none", "a.ckpt"),
        ):
            models.KNOWN[model.name] = model
        models.CUTTERS["tinycut"] = CutterWeights("tinycut", "{models_digest(DATA, "md5")}", "MIT", "a cutter")
        CutterWeights.url = property(lambda self: "{server.url}/" + self.file)
        """

    def __call__(self, *arguments: str, code: int = 0, **options: Any) -> Finished:
        env = {**self.env, **options.pop("env", {})}
        return self.program.wrapped(self.script, "models", *arguments, code=code, env=env, **options)

    def pull(self, *names: str, code: int = 0, **options: Any) -> Finished:
        return self("pull", *names, "--accept-licence", code=code, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [*self.program.wrapper(self.script), "models", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment(self.env), text=True, **(pipes | options))

    def installed(self) -> list[Path]:
        return [path for folder in (self.hub_cache, self.weights) for path in folder.rglob("*.ckpt")]

    def partials(self) -> list[Path]:
        return [path for folder in (self.hub_cache, self.weights) for path in folder.rglob(".zero123-*.part")]


def models_digest(data: bytes, kind: str = "sha256") -> str:
    import hashlib

    return hashlib.new(kind, data).hexdigest()


@pytest.fixture
def shop(zero123: Program, server: StandIn, private_home: Path) -> Shop:
    return Shop(zero123, server, private_home)


def wait_for(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIME_OUT
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The table ------------------------------------------------------------------------------------------------------------


def test_the_table_is_well_formed() -> None:
    assert len(models.table()) == len(models.EMBEDDED) + len(models.KNOWN) + len(models.CUTTERS)
    for name, known in models.table().items():
        assert known.name == name and re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)
        assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|)", known.digest)
    for model in models.KNOWN.values():
        assert bool(model.repo) != bool(model.url)
        assert model.url.startswith("https://") or re.fullmatch(r"[\w-]+/[\w-]+", model.repo)
        assert model.pose_kind == ("stable" if model.name.startswith("stable") else "original")
        assert "on-commercial" in model.licence or not model.non_commercial
    assert all(cutter.digest for cutter in models.CUTTERS.values())


def test_cutters_are_fetched_from_where_rembg_fetches_them() -> None:
    rembg = importlib.util.find_spec("rembg")
    assert rembg and rembg.submodule_search_locations
    folder = Path(rembg.submodule_search_locations[0], "sessions")
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    for cutter in models.CUTTERS.values():
        assert f'"{cutter.url}"' in text and f'"{cutter.digest}"' in text, cutter.name


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean zero123-xl"):
        models.look_up("zero123xl")
    with pytest.raises(UsageError, match="zero123 models list"):
        models.look_up("qqq")


def test_a_missing_model_names_the_exact_command() -> None:
    error = models.model_missing("stable-zero123")
    assert (error.exit_code, error.remedy) == (69, "run: zero123 models pull stable-zero123")


def test_nothing_of_the_hub_is_imported_before_it_is_needed() -> None:
    code = "import sys, zero123cli.fetching, zero123cli.cli.models; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIME_OUT)


# What came with the program -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_what_came_with_the_program_is_known_sound_and_stays(zero123: Program, name: str) -> None:
    path = models.EMBEDDED[name].path
    assert zero123("models", "path", name).stdout == f"{path}\n"
    assert json.loads(zero123("models", "path", name, "--json").stdout)["path"] == str(path)
    assert zero123("models", "pull", name).stdout == f"{path}\n", "asks nobody"
    assert f"{name}: sound" in zero123("models", "verify").stderr
    assert "goes with the program" in zero123("models", "rm", name, "--yes", code=77).stderr
    assert path.is_file()
    row = next(
        row for row in map(json.loads, zero123("models", "list", "--json").stdout.splitlines()) if row["installed"]
    )
    assert row["name"] == "pocket" and row["kind"] == "view" and row["path"] == str(models.POCKET.path)


@pytest.mark.slow
def test_what_did_not_come_whole_is_installed_again(zero123: Program) -> None:
    assets = zero123.folder / "parts"
    assets.mkdir()
    (assets / "pocket.safetensors").write_bytes(models.POCKET.path.read_bytes()[:-1])
    elsewhere = """
    import pathlib
    from zero123cli import machine
    own = machine.shipped
    machine.shipped = lambda name: pathlib.Path("parts") if name == "assets" else own(name)
    """
    again = "-m pip install --force-reinstall --no-deps zero123cli"
    for verb in ("verify", "pull"):
        damaged = zero123.wrapped(elsewhere, "models", verb, "pocket", code=65).stderr
        assert "its digest differs" in damaged and again in damaged
    assert again in zero123.wrapped(elsewhere, "models", "verify", code=69).stderr, "what is lost is not passed over"
    for verb in ("verify", "path", "pull"):
        assert again in zero123.wrapped(elsewhere, "models", verb, "pocket-cutter", code=69).stderr


def test_nothing_is_converted_into_its_own_place(here: Program) -> None:
    path = here.folder / "w.safetensors"
    path.write_bytes(models.POCKET.path.read_bytes())
    assert "would replace an input" in here("models", "convert", path, "-o", path, "--force", code=2).stderr
    assert path.read_bytes() == models.POCKET.path.read_bytes()


def test_a_cutter_is_not_said_to_be_unknown(zero123: Program) -> None:
    assert "u2net is a cutter" in zero123("models", "inspect", "u2net", code=2).stderr
    assert "did you mean pocket?" in zero123("models", "inspect", "poket", code=2).stderr


# list, path -----------------------------------------------------------------------------------------------------------


def test_list_shows_all_of_the_table(zero123: Program) -> None:
    lines = zero123("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(models.table())
    xl = next(line for line in lines if line.startswith("zero123-xl "))
    assert "15.5 GB" in xl and "not stated" in xl
    rows = [json.loads(line) for line in zero123("models", "list", "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == list(models.table())
    stable = next(row for row in rows if row["name"] == "stable-zero123")
    assert stable["non_commercial"] and not stable["installed"] and stable["path"] is None


def test_list_on_a_terminal_is_a_table() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-W", "error", "-m", "zero123cli", "models", "list"]
    with subprocess.Popen(command, stdout=theirs, env=environment({"TERM": "xterm", "COLUMNS": "200"})) as process:
        os.close(theirs)
        text = b""
        while chunk := read_tty(ours):
            text += chunk
        assert process.wait(TIME_OUT) == 0
    os.close(ours)
    assert b"licence" in text and b"stable-zero123-c" in text and b"birefnet-general-lite" in text


def read_tty(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # the other side is gone
        return b""


# pull -----------------------------------------------------------------------------------------------------------------


def test_a_plain_file_is_pulled_verified_found_and_removed(shop: Shop) -> None:
    run = shop.pull("plain")
    path = shop.weights / "plain.ckpt"
    assert run.stdout == f"{path}\n" and path.read_bytes() == DATA
    assert "plain: licence: MIT; 3.0 MB from 127.0.0.1" in run.stderr
    assert shop("path", "plain").stdout == f"{path}\n"
    again = shop.pull("plain")
    assert again.stdout == run.stdout and "already installed" in again.stderr
    assert shop.server.asked() == ["/plain.ckpt"]
    assert "plain: sound" in shop("verify").stderr
    assert "installed" in shop("list").stdout.splitlines()[0]
    assert "removed, 3.0 MB freed" in shop("rm", "plain", "--yes").stderr
    assert not path.exists()
    missing = shop("path", "plain", code=69)
    assert "the weights of plain are not installed; run: zero123 models pull plain" in missing.stderr


def test_a_hub_file_lands_where_the_hubs_own_client_finds_it(shop: Shop) -> None:
    path = Path(shop.pull("hub-a").stdout.strip())
    assert path.read_bytes() == DATA
    assert path == shop.hub_cache / "models--lab--weights" / "snapshots" / COMMIT / "a.ckpt"
    assert shop("path", "hub-a").stdout.strip() == str(path)
    code = (
        "import sys, huggingface_hub as hub\n"
        "print(hub.hf_hub_download('lab/weights', 'a.ckpt', local_files_only=True))\n"
        "print(hub.hf_hub_download('lab/weights', 'a.ckpt', revision=sys.argv[1]))\n"
        "cache = hub.scan_cache_dir(); print(len(cache.repos), len(cache.warnings), cache.size_on_disk)"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, COMMIT], env=environment(shop.env), capture_output=True, text=True
    )
    assert found.stdout.split() == [str(path), str(path), "1", "0", str(len(DATA))], found.stderr
    assert not shop.partials()


@pytest.mark.slow
def test_a_diffusers_folder_is_pulled_with_one_variant(shop: Shop) -> None:
    folder = Path(shop.pull("folder").stdout.strip())
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert "folder: sound" in shop("verify", "folder").stderr
    (folder / "unet" / "config.json").resolve().write_bytes(b"[]")
    assert "config.json" in shop("verify", "folder", code=65).stderr
    assert shop.pull("folder").stdout.strip() == str(folder)
    assert (folder / "unet" / "config.json").read_bytes() == b"{}"
    shop("rm", "folder", "-y")
    assert not list(shop.hub_cache.rglob("*lab--folder*"))


@pytest.mark.slow
def test_a_folder_counts_only_when_all_of_it_is_there(shop: Shop) -> None:
    shop.parts["unet/diffusion_pytorch_model.fp16.safetensors"].codes = [404]
    shop.pull("folder", code=69)
    shop("path", "folder", code=69)
    folder = shop.pull("folder").stdout.strip()
    assert shop("path", "folder").stdout.strip() == folder


def test_a_cutter_goes_where_rembg_looks(shop: Shop, private_home: Path) -> None:
    path = private_home / "data" / "rembg" / "models" / "tinycut" / "tinycut.onnx"
    assert shop.pull("tinycut").stdout == f"{path}\n"
    path.write_bytes(b"damaged")
    damaged = shop("verify", "--json", code=65)
    assert json.loads(damaged.stdout)["code"] == 65 and "run: zero123 models pull tinycut" in damaged.stderr
    assert "not the published tinycut weights" in shop.pull("tinycut").stderr
    assert path.read_bytes() == DATA


def test_without_consent_nothing_is_fetched(shop: Shop) -> None:
    run = shop("pull", "hub-b", "--json", code=77)
    assert "hub-b: licence: Research only (non-commercial)" in run.stderr
    assert json.loads(run.stdout)["remedy"] == "add --accept-licence if you agree to it"
    assert shop.server.asked() == []


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"\n", 77)])
def test_on_a_terminal_it_asks(shop: Shop, answer: bytes, code: int) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = shop.start("pull", "hub-b", stdin=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while b"[y/N]" not in text:
        text += read_tty(ours) or pytest.fail(text.decode())
    assert b"Research only (non-commercial); 3.0 MB from huggingface.co/lab/weights" in text.replace(b"\r\n", b"\n")
    assert shop.server.asked() == ["/api/models/lab/weights"]
    os.write(ours, answer)
    while chunk := read_tty(ours):
        text += chunk
    out, _ = process.communicate(timeout=TIME_OUT)
    os.close(ours)
    assert process.returncode == code, text
    assert out.strip().endswith("b.ckpt") == (code == 0)


def test_a_gated_model_says_what_to_do_and_heeds_the_token(shop: Shop) -> None:
    shop.server.files[f"/lab/weights/resolve/{COMMIT}/a.ckpt"].token = "secret"
    for env in ({}, {"HF_TOKEN": "wrong"}):
        run = shop.pull("hub-a", code=69, env=env)
        assert "https://huggingface.co/lab/weights" in run.stderr
        assert "accept the licence on that page, make a token and set HF_TOKEN" in run.stderr
    shop.pull("hub-a", env={"HF_TOKEN": "secret"})
    assert [seen.token for seen in shop.server.log if seen.path.startswith("/store/")] == [None]
    assert "secret" not in "".join(path.read_text("latin-1") for path in shop.hub_cache.rglob("*.json"))


@pytest.mark.parametrize("name", ["nowhere", "plain"])
def test_what_is_not_there_is_69(shop: Shop, name: str) -> None:
    shop.server.files.pop("/plain.ckpt")
    assert "answers 404" in shop.pull(name, code=69).stderr


def test_no_connection_is_69(shop: Shop) -> None:
    run = shop.pull("hub-a", code=69, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "the hub cannot be reached" in run.stderr and "check the connection" in run.stderr


@pytest.mark.parametrize("name", ["hub-a", "plain"])
def test_other_bytes_than_announced_are_65_and_never_installed(shop: Shop, name: str) -> None:
    served = shop.stored["a.ckpt"] if name == "hub-a" else shop.server.files["/plain.ckpt"]
    served.data = DATA[:-1] + b"?"
    assert "its digest differs" in shop.pull(name, code=65).stderr
    assert not shop.installed() and not shop.partials()


def test_a_hub_that_has_another_file_than_the_table_is_refused_unfetched(shop: Shop) -> None:
    assert "another a.ckpt than the published one" in shop.pull("other", code=65).stderr
    assert shop.server.asked() == ["/api/models/lab/weights"]


@pytest.mark.parametrize("env", [{"ZERO123_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "1"}, {}])
def test_offline_is_heeded(shop: Shop, env: dict[str, str]) -> None:
    run = shop.pull("hub-a", "plain", *([] if env else ["--offline"]), code=69, env=env)
    assert run.stderr.count("the network is not to be used") == 2
    assert shop.server.asked() == []


@pytest.mark.slow
def test_several_are_pulled_and_the_gravest_exit_code_is_met(shop: Shop) -> None:
    run = shop.pull("plain", "nowhere", "other", "tinycut", "--json", code=69)
    rows = {row.get("name", row.get("input")): row["code"] for row in map(json.loads, run.stdout.splitlines())}
    assert rows == {"plain": 0, "nowhere": 69, "other": 65, "tinycut": 0}
    assert "did you mean plain?" in shop.pull("tinycut", "plane", code=2).stderr
    for verb in ("verify", "path", "rm"):
        assert "did you mean plain?" in shop(verb, "plane", code=2).stderr


# Broken off -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("hub-a", signal.SIGKILL), ("plain", signal.SIGTERM)])
def test_a_pull_that_was_killed_goes_on(shop: Shop, name: str, number: signal.Signals) -> None:
    place = f"/store/{models_digest(DATA)}" if name == "hub-a" else "/plain.ckpt"
    served = shop.server.files[place]
    served.cuts, served.stall = [2_000_000], 1.0
    process = shop.start("pull", name, "--accept-licence")
    wait_for(lambda: any(part.stat().st_size == 2_000_000 for part in shop.partials()))
    process.send_signal(number)
    process.communicate(timeout=TIME_OUT)
    assert process.returncode == -number
    assert not shop.installed()
    path = Path(shop.pull(name).stdout.strip())
    assert path.read_bytes() == DATA and not shop.partials()
    assert shop.server.sent(place) == len(DATA)


def test_two_pulls_at_once_fetch_it_once(shop: Shop) -> None:
    shop.stored["a.ckpt"].cuts, shop.stored["a.ckpt"].stall = [1_000_000], 1.0
    first, second = (shop.start("pull", "hub-a", "--accept-licence") for _ in range(2))
    (a, _), (b, _) = first.communicate(timeout=TIME_OUT), second.communicate(timeout=TIME_OUT)
    assert (first.returncode, second.returncode) == (0, 0)
    assert a == b and Path(a.strip()).read_bytes() == DATA
    assert shop.server.sent(f"/store/{models_digest(DATA)}") == len(DATA)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_full_disk_is_74_and_the_next_pull_goes_on(shop: Shop) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))\n"
    script, shop.script = shop.script, f"import textwrap\n{limit}exec(textwrap.dedent({shop.script!r}))"
    assert "free some space" in shop.pull("plain", code=74).stderr
    shop.script = script
    shop.pull("plain")
    assert shop.server.files["/plain.ckpt"].codes == []
    assert shop.server.log[-1].range == "bytes=1000000-"


# verify, rm -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_tells_damage_and_what_cannot_be_told(shop: Shop) -> None:
    assert "run: zero123 models pull hub-a" in shop("verify", "hub-a", code=69).stderr
    path = Path(shop.pull("hub-a").stdout.strip())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.resolve().write_bytes(data)
    assert "its digest differs from the published one" in shop("verify", code=65).stderr
    shop.pull("undigested")
    assert "undigested: no published digest" in shop("verify", "undigested").stderr
    path = shop.weights / "plain.ckpt"
    path.write_bytes(DATA[:10])
    assert "10 bytes instead of 3000000" in shop("verify", "plain", code=65).stderr


@pytest.mark.slow
def test_rm_takes_only_what_was_named(shop: Shop) -> None:
    a, b = (Path(line) for line in shop.pull("hub-a", "hub-b").stdout.splitlines())
    assert "add --yes" in shop("rm", "hub-a", code=77).stderr
    assert a.is_file()
    assert "3.0 MB freed" in shop("rm", "hub-a", "--yes").stderr
    assert not a.exists() and b.read_bytes() == DATA[::-1]
    assert len(list((shop.hub_cache / "models--lab--weights" / "blobs").iterdir())) == 1
    shop("rm", "hub-b", "--yes")
    assert not (shop.hub_cache / "models--lab--weights").exists()
    assert "not installed" in shop("rm", "hub-b", "--yes", code=69).stderr


def test_rm_takes_away_what_a_broken_off_pull_left(shop: Shop) -> None:
    shop.server.files["/plain.ckpt"].cuts = [1_000_000, *[0] * 9]
    assert "it goes on where it stopped" in shop.pull("plain", code=69).stderr
    assert len(shop.partials()) == 1
    assert "1.0 MB freed" in shop("rm", "plain", "--yes").stderr
    assert os.listdir(shop.weights) == []
