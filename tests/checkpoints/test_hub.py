"""The Hub through the real huggingface_hub, against a small server that answers as the Hub does."""

import hashlib
import http.server
import json
import logging
import re
import shutil
import threading

import huggingface_hub
import pytest
from support.checkpoints import tiny
from support.clip import write_checker, write_clip
from support.original_files import write_original
from support.runs import config

from tpusd.checkpoints import ModelSource, copies, open_checkpoint, weights_digest
from tpusd.checkpoints.adapters import find_embedding, find_lora
from tpusd.config.adapters import LoraConfig
from tpusd.config.embeddings import EmbeddingConfig
from tpusd.config.schema import OtherPart
from tpusd.errors import UserError
from tpusd.families.stable_diffusion import StableDiffusion
from tpusd.vision.clip import open_clip
from tpusd.vision.safety import open_checker

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
REPO = "owner/name"
EXTRA = {  # what published repositories hold besides, and must not be downloaded
    "README.md": b"# a model",
    "v1-5-pruned.ckpt": b"pickle",
    "safety_checker/model.safetensors": b"safety",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"more",
    "text_encoder/pytorch_model.bin": b"pickle",
}


class Hub:
    """What the server answers, and what it was asked."""

    def __init__(self):
        root = tiny()
        self.files = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()} | EXTRA
        self.error: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.in_xet: set[str] = set()
        self.copies: dict[str, dict[str, bytes]] = {}  # other repositories: name -> files
        self.gone: set[str] = set()

    def answer(self, path: str) -> tuple[int, dict, bytes]:
        if self.error is not None:
            return self.error[0], {"X-Error-Code": self.error[1], "X-Error-Message": self.error[1]}, b"{}"
        repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if repo in self.gone or repo not in (REPO, *self.copies):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return self.of_repo(repo, self.files if repo == REPO else self.copies[repo], path)

    def of_repo(self, repo: str, files: dict[str, bytes], path: str) -> tuple[int, dict, bytes]:
        api, _, rest = path.partition(f"/api/models/{repo}")
        if not api and (not rest or rest.startswith("/revision/")):
            revision = rest.removeprefix("/revision/") or "main"
            if revision not in ("main", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            siblings = [{"rfilename": name} for name in sorted(files)]
            return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        if not api and rest.startswith("/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        name = path.removeprefix(f"/{repo}/resolve/{COMMIT}/")
        if name in files:
            data = files[name]
            digest = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
            if name in self.in_xet:  # as the Hub marks files of its Xet storage; here their hash is the sha256
                headers |= {
                    "X-Xet-Hash": digest,
                    "X-Xet-Refresh-Route": "/api/no-such-route",
                    "X-Linked-Size": str(len(data)),
                }
            return 200, headers, data
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"{}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def opened(**source):
    return open_checkpoint(ModelSource(repo=REPO, **source))


def refusal(**source) -> str:
    with pytest.raises(UserError) as caught:
        opened(**source)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.long
@pytest.mark.slow
def test_only_what_is_read_is_downloaded_and_the_commit_is_logged(hub, caplog):
    with caplog.at_level(logging.INFO, logger="tpusd"):
        checkpoint = opened()
    identity = checkpoint.identity
    assert (identity.repo, identity.commit) == (REPO, COMMIT)
    assert COMMIT in caplog.text
    assert not [name for name in EXTRA if (checkpoint.directory / name).exists()]
    assert identity.sha256.keys() == hub.files.keys() - EXTRA.keys()
    assert all(identity.sha256[name] == hashlib.sha256(hub.files[name]).hexdigest() for name in identity.files)


def in_shared_store(hub, tmp_path):
    """All weights are in Xet storage, and another repository has brought them into this cache's shared store."""
    blobs = pytest.importorskip(
        "huggingface_hub.utils._shared_blobs", reason="huggingface_hub < 2.4 has no shared store"
    )
    hub.in_xet = {name for name in hub.files if name.endswith(".safetensors")}
    for name in hub.in_xet:
        digest = hashlib.sha256(hub.files[name]).hexdigest()
        blob = tmp_path / "cache" / "models--other--one" / "blobs" / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(hub.files[name])
        shared = blobs.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash=digest, cache_dir=tmp_path / "cache", expected_size=len(hub.files[name])
        )
        assert shared and blob.is_symlink()


def test_weights_in_the_store_that_repositories_share_are_read(hub, tmp_path, monkeypatch):
    """Online, offline, and as a directory: the library links the snapshot's files into that store."""
    in_shared_store(hub, tmp_path)
    online = opened()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (online.directory / weights).resolve().is_relative_to((tmp_path / "cache" / "blobs").resolve())
    assert online.identity.sha256[weights] == hashlib.sha256(hub.files[weights]).hexdigest()
    snapshot = open_checkpoint(ModelSource(path=str(online.directory)))
    assert snapshot.identity.sha256 == online.identity.sha256
    hub.error = (503, "down")
    assert opened().identity.commit == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert opened().identity.sha256 == online.identity.sha256


@pytest.mark.parametrize(
    "target",
    ["secret", "cache/secret", "cache/blobs/secret", "cache/blobs/ab/secret", "cache/models--other--one/blobs/ab"],
)
def test_only_blobs_of_the_cache_are_followed(hub, tmp_path, target):
    """A snapshot from a stranger cannot name another file, also not one that is near."""
    directory = opened().directory
    secret = tmp_path / target
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes((directory / "vae/config.json").read_bytes())
    (directory / "vae/config.json").unlink()
    (directory / "vae/config.json").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of the checkpoint directory"):
        open_checkpoint(ModelSource(path=str(directory)))


@pytest.mark.parametrize("store", ["models--owner--name/blobs", "blobs"])
def test_a_store_that_is_a_link_is_not_followed(hub, tmp_path, store):
    directory = opened().directory
    cache = directory.parents[2]
    elsewhere = tmp_path / "elsewhere" / "ab"
    elsewhere.mkdir(parents=True)
    (elsewhere / ("ab" * 32)).write_bytes((directory / "vae/config.json").read_bytes())
    for file in (cache / store).rglob("*"):
        if file.is_file():
            shutil.copy(file, tmp_path / "elsewhere")
    shutil.rmtree(cache / store, ignore_errors=True)
    (cache / store).symlink_to(tmp_path / "elsewhere")
    (directory / "vae/config.json").unlink()
    (directory / "vae/config.json").symlink_to(cache / store / "ab" / ("ab" * 32))
    with pytest.raises(UserError, match="leads out of the checkpoint directory"):
        open_checkpoint(ModelSource(path=str(directory)))


def test_a_pinned_commit_in_the_cache_needs_no_network(hub):
    opened(revision=COMMIT)
    hub.asked.clear()
    hub.error = (500, "down")
    assert opened(revision=COMMIT).identity.commit == COMMIT
    assert hub.asked == []


def test_a_half_downloaded_pinned_commit_is_completed(hub):
    directory = opened(revision=COMMIT).directory
    for name in ("tokenizer/vocab.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"):
        (directory / name).unlink()
        assert opened(revision=COMMIT).identity.commit == COMMIT
        assert (directory / name).exists()


def test_offline_the_cached_commit_of_a_branch_is_used_and_named(hub, caplog):
    opened()
    hub.error = (503, "down")
    assert opened().identity.commit == COMMIT
    assert "cannot be reached" in caplog.text and COMMIT in caplog.text


def test_offline_without_a_cache_says_what_to_do(hub, monkeypatch):
    hub.error = (503, "down")
    assert "cannot be reached" in refusal() and "model=local" in refusal()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refusal()


def test_offline_with_half_a_checkpoint_is_offline_without_one(hub):
    shutil.rmtree(opened().directory / "vae")
    hub.error = (503, "down")
    assert "does not hold all of this checkpoint" in refusal()


def test_a_user_without_a_home_is_asked_for_a_directory(hub, monkeypatch):
    """A container's user without an entry in passwd; the library then keeps the ~ in its path."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert "this user has none; set HF_HOME=" in refusal()


def test_a_gated_repository_says_where_to_accept(hub):
    for status in (401, 403):
        hub.error = (status, "GatedRepo")
        assert f"gated; accept its terms at https://huggingface.co/{REPO}" in refusal()


def test_a_gated_repository_is_not_served_from_a_stale_cache(hub):
    opened()
    hub.error = (403, "GatedRepo")
    assert "gated" in refusal()


def test_a_missing_repository_is_told_from_a_missing_revision(hub):
    hub.error = (401, "RepoNotFound")
    assert "no such repository, or a private one" in refusal()
    hub.error = None
    assert "has no such branch, tag or commit" in refusal(revision="fp16")
    assert "has no such branch, tag or commit" in refusal(revision=OTHER)


@pytest.mark.parametrize("repo", [repo for repo, known in copies.PUBLISHED.items() if known.removed])
def test_what_is_gone_is_said_to_be_gone(hub, repo):
    """With a mirror that a model choice of ours uses too, and not the advice to log in."""
    with pytest.raises(UserError, match="its owner removed it; a mirror is model.repo=") as caught:
        open_checkpoint(ModelSource(repo=repo))
    choices = [config(f"model={name}").model for name in ("sd15", "sd21", "sd21_base")]
    assert any(f"model.repo={m.repo} model.revision={m.revision}" in str(caught.value) for m in choices)
    assert "log in" not in str(caught.value)


FIRST, SECOND = copies.Copy("first/copy", COMMIT), copies.Copy("second/copy", COMMIT)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def digest(hub, monkeypatch):
    """Of the original's files, as a run records it. The original is gone from the Hub and from the cache."""
    checkpoint = opened()
    digest = weights_digest(checkpoint.identity.sha256)
    shutil.rmtree(checkpoint.directory.parents[1])
    hub.gone.add(REPO)
    hub.copies = {FIRST.repo: dict(hub.files), SECOND.repo: dict(hub.files)}
    publish(monkeypatch)
    return digest


def publish(monkeypatch, **known):
    monkeypatch.setitem(copies.PUBLISHED, REPO, copies.Published(copies=(FIRST, SECOND), **known))


def test_a_copy_with_the_same_sums_is_read_where_a_repository_is_gone(hub, digest):
    hub.copies[FIRST.repo]["vae/config.json"] += b" "
    checkpoint = opened(sha256=digest)
    assert (checkpoint.identity.repo, checkpoint.identity.commit) == (SECOND.repo, COMMIT)
    assert weights_digest(checkpoint.identity.sha256) == digest
    assert checkpoint.notes == (
        f"model.repo={REPO}: is gone or cannot be reached, and its copy {SECOND.repo}@{COMMIT} is read",
    )


def test_a_repository_that_is_there_is_read_and_not_its_copy(hub, digest):
    hub.gone.clear()
    checkpoint = opened(sha256=digest)
    assert checkpoint.identity.repo == REPO and not checkpoint.notes
    assert not [path for path in hub.asked if "/copy" in path]


def test_copies_with_other_sums_are_refused(hub, digest):
    hub.copies[FIRST.repo][WEIGHTS] = hub.files[WEIGHTS][:-4] + b"\0\0\0\1"
    hub.gone.add(SECOND.repo)
    line = refusal(sha256=digest)
    assert f"{FIRST.repo}@{COMMIT}: its files have another sha256" in line
    assert f"{SECOND.repo}@{COMMIT} is not there either" in line


def test_a_copy_that_is_no_checkpoint_is_passed_over(hub, digest):
    del hub.copies[FIRST.repo]["model_index.json"]
    assert opened(sha256=digest).identity.repo == SECOND.repo


@pytest.mark.parametrize("name", [WEIGHTS, "text_encoder/model.safetensors"])
def test_without_a_run_the_published_sums_of_the_weights_decide(hub, digest, monkeypatch, name):
    sums = {n: hashlib.sha256(data).hexdigest() for n, data in hub.files.items() if n.endswith(".safetensors")}
    publish(monkeypatch, sums=sums, commit=OTHER)
    assert opened().identity.repo == opened(revision=OTHER).identity.repo == FIRST.repo
    assert "no such repository" in refusal(revision="fp16")  # sums are known of one commit
    publish(monkeypatch, sums={**sums, name: "0" * 64})
    assert f"the sha256 of its {name} is not that of the original" in refusal()


def test_where_no_sums_are_known_no_copy_is_read(hub, digest, monkeypatch):
    assert "no such repository" in refusal()
    publish(monkeypatch, removed=True)
    assert f"its owner removed it; a mirror is model.repo={FIRST.repo} model.revision={COMMIT}" in refusal()


def test_offline_a_copy_in_the_cache_is_read(hub, digest):
    opened(sha256=digest)
    hub.error = (503, "down")
    assert opened(sha256=digest).identity.repo == FIRST.repo
    shutil.rmtree(opened(sha256=digest).directory.parents[1])
    assert "cannot be reached" in refusal(sha256=digest) and "copy" not in refusal(sha256=digest)


def test_what_is_known_of_published_repositories_is_whole():
    for known in copies.PUBLISHED.values():
        assert known.copies and (known.removed or known.sums)
        assert all(re.fullmatch("[0-9a-f]{40}", copy.commit) for copy in known.copies)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known.sums.values())
    for name in ("sd15", "sd21", "sd21_base"):
        model = config(f"model={name}").model
        pinned = copies.Copy(model.repo, model.revision)
        assert any(pinned in known.copies for known in copies.PUBLISHED.values())


def test_a_name_that_is_no_repository_is_refused(hub):
    with pytest.raises(UserError, match="must be owner/name"):
        open_checkpoint(ModelSource(repo="https://huggingface.co/owner/name"))


def test_nothing_is_downloaded_from_a_repository_without_safe_weights(hub):
    del (
        hub.files["unet/diffusion_pytorch_model.safetensors"],
        hub.files["unet/diffusion_pytorch_model.non_ema.safetensors"],
    )
    assert "only pickled weights" in refusal()
    del hub.files["model_index.json"]
    assert "not a diffusers checkpoint" in refusal()
    assert not [path for path in hub.asked if "/resolve/" in path]


def test_an_absent_variant_is_refused_before_downloading(hub):
    assert "leave model.variant unset" in refusal(variant="fp16")
    assert not [path for path in hub.asked if "/resolve/" in path]


def test_shards_of_the_chosen_variant_are_downloaded(hub):
    from tpusd.checkpoints.source import needed_files

    stem = "unet/diffusion_pytorch_model"
    shards = [
        f"{stem}-00001-of-00002.safetensors",
        f"{stem}-00002-of-00002.safetensors",
        f"{stem}.safetensors.index.json",
    ]
    half = [f"{stem}.fp16-00001-of-00001.safetensors", f"{stem}.safetensors.index.fp16.json"]
    rest = [name for name in hub.files if not name.startswith(stem)]
    assert set(shards) == set(needed_files([*rest, *shards, *half], StableDiffusion(), None, "x")) - set(rest)
    half_rest = [n.replace(".safetensors", ".fp16.safetensors") for n in rest]
    assert set(half) == set(needed_files([*half_rest, *shards, *half], StableDiffusion(), "fp16", "x")) - set(half_rest)


def test_one_file_of_a_repository_is_read_and_needs_no_network_again(hub, tmp_path, monkeypatch):
    file = write_original(tiny(), tmp_path / "x.safetensors")
    hub.files["folder/x.safetensors"] = file.read_bytes()
    single = {"file": "folder/x.safetensors", "revision": COMMIT, "config": str(tiny())}
    checkpoint = opened(**single)
    assert (checkpoint.identity.repo, checkpoint.identity.commit) == (REPO, COMMIT)
    assert checkpoint.identity.sha256["checkpoint.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()
    hub.asked.clear()
    hub.error = (500, "down")
    assert opened(**single).identity.commit == COMMIT
    assert hub.asked == []


def test_a_vae_of_a_repository_is_read_at_one_commit(hub):
    vae = OtherPart(repo=REPO, revision=COMMIT)
    checkpoint = open_checkpoint(ModelSource(path=str(tiny()), vae=vae))
    assert checkpoint.identity.part_commits == {"vae": COMMIT}
    assert not [path for path in hub.asked if "unet" in path]


def test_weights_that_another_network_replaces_are_not_downloaded(hub):
    source = {"revision": COMMIT, "unet": OtherPart(path=str(tiny()))}
    opened(**source)
    assert not [path for path in hub.asked if "unet/diffusion_pytorch_model" in path]
    assert [path for path in hub.asked if "vae/diffusion_pytorch_model" in path]
    hub.error = (500, "down")
    assert opened(**source).identity.commit == COMMIT  # the cache is whole without them
    assert "the cache does not hold all of this checkpoint" in refusal(revision=COMMIT)


def test_what_is_wrong_with_a_file_of_the_hub_is_one_line(hub, monkeypatch):
    assert "model.file=y.safetensors: owner/name has no such file" in refusal(file="y.safetensors", revision=COMMIT)
    hub.error = (403, "GatedRepo")
    assert "gated; accept its terms" in refusal(file="x.safetensors")
    hub.error = (401, "RepoNotFound")
    assert "no such repository, or a private one" in refusal(file="x.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the cache does not hold x.safetensors" in refusal(file="x.safetensors")


@pytest.mark.long
@pytest.mark.slow
def test_a_lora_comes_from_the_hub_and_then_from_its_cache(hub):
    hub.copies["someone/ink"] = {"ink.safetensors": b"lora", "ink.pt": b"pickle", "README.md": b""}

    def found(**source):
        return find_lora(LoraConfig(repo="someone/ink", **({"revision": COMMIT} | source)), "loras[0]")

    def line(**source):
        with pytest.raises(UserError) as caught:
            found(**source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    online = found()
    assert (online.file, online.commit, online.path.read_bytes()) == ("ink.safetensors", COMMIT, b"lora")
    assert online.sha256 == hashlib.sha256(b"lora").hexdigest()
    assert "loras[0].file=ink.pt: is a pickle" in line(file="ink.pt")
    embedding = find_embedding(EmbeddingConfig(repo="someone/ink", file="ink.pt", revision=COMMIT), "embeddings[0]")
    assert (embedding.name, embedding.commit, embedding.path.read_bytes()) == ("ink.pt", COMMIT, b"pickle")
    assert "loras[0].file=x.safetensors: someone/ink has no such file" in line(file="x.safetensors")
    hub.error = (503, "down")
    assert found(file="ink.safetensors") == online
    assert "to list its files; connect, or name one" in line()
    hub.error = None
    hub.gone.add("someone/ink")
    assert line().startswith("loras[0].repo=someone/ink: no such repository")


def files_in(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_clip_is_downloaded_file_by_file_and_a_pinned_one_is_read_offline(hub, tmp_path):
    hub.copies["owner/clip"] = files_in(write_clip(tmp_path / "clip")) | {"pytorch_model.bin": b"pickle"}
    online = open_clip(repo="owner/clip", revision=COMMIT)
    assert (online.identity.repo, online.identity.commit) == ("owner/clip", COMMIT)
    assert online.identity.files == open_clip(tmp_path / "clip").identity.files
    assert not any(path.endswith(".bin") for path in hub.asked)
    assert online.tokenizer(["a fox"]).input_ids.shape == (1, 77)
    hub.error, hub.asked = (503, "down"), []
    offline = open_clip(repo="owner/clip", revision=COMMIT)
    assert offline.identity.sha256 == online.identity.sha256 and hub.asked == []


def test_clip_that_cannot_be_had_is_one_line(hub, monkeypatch):
    hub.copies["owner/clip"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(UserError, match="neither a CLIPModel nor"):
        open_clip(repo="owner/clip", revision=COMMIT, field="score.clip")
    hub.copies["owner/other"] = {}
    with pytest.raises(UserError, match="^score.clip=owner/other: has no config.json"):
        open_clip(repo="owner/other", revision=COMMIT, field="score.clip")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="^score.clip.repo=owner/third: the Hub cannot be reached"):
        open_clip(repo="owner/third", revision=COMMIT, field="score.clip")


def test_model_of_the_hub_without_a_checker_is_one_line(hub):
    with pytest.raises(UserError, match="safety: the model has no safety_checker/; name one"):
        open_checker(opened())


def test_checker_of_a_model_comes_from_its_repository_at_its_commit(hub, tmp_path):
    root = write_checker(tmp_path / "with", folder="safety_checker")
    hub.files |= files_in(root)
    hub.copies["owner/with"] = files_in(root)
    hub.copies["owner/alone"] = files_in(write_checker(tmp_path / "alone"))
    found = [
        open_checker(opened(revision=COMMIT)),
        open_checker(opened(), repo="owner/with", revision=COMMIT),
        open_checker(opened(), repo="owner/alone", revision=COMMIT),
    ]
    assert [one.identity.repo for one in found] == [REPO, "owner/with", "owner/alone"]
    assert {one.identity.commit for one in found} == {COMMIT}
    assert found[0].sha256 == found[1].sha256 and found[0].identity.files == found[1].identity.files
