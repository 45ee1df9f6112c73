"""Uploads to a hub on this machine."""

from __future__ import annotations

import pytest
from fake_hub import LARGE, Repository, fake_hub

from pcm_rl.cli import main
from pcm_rl.config import ConfigError
from pcm_rl.evals import export
from pcm_rl.evals.push import push_to_hub

constants = pytest.importorskip("huggingface_hub.constants")

OURS = b"---\nlibrary_name: pcm_rl\n---\n# A policy\n"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub of ``huggingface_hub``, with a user who is logged in."""
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not HTTP alone
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def folder(tmp_path):
    """An export: a card, a small file and a large one."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_bytes(OURS)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * (LARGE // 128))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_what_was_exported_and_only_the_owner_sees_it(server, folder):
    address = push_to_hub(folder, "me/policy")
    repository = server.repositories["me/policy"]
    assert repository.private and repository.files == content(folder) and len(server.blobs) == 1
    assert len(repository.commits) == 1 and address == f"{server.url}/me/policy/commit/{1:040d}"
    assert server.tokens <= {"Bearer hf_test", None}
    push_to_hub(folder, "me/open", private=False)
    assert not server.repositories["me/open"].private


def test_a_second_push_replaces_its_files_and_leaves_others(server, folder):
    push_to_hub(folder, "me/policy")
    files = server.repositories["me/policy"].files
    files["notes.txt"] = b"mine"
    (folder / "config.json").write_text('{"a": 2}')
    push_to_hub(folder, "me/policy")
    assert files == {**content(folder), "notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        (Repository(True, {"README.md": b"# Somebody's\n"}), r"README\.md that pcm_rl did not write"),
        (
            Repository(True, {"README.md": OURS, "b.safetensors": b""}),
            r"other weights, b\.safetensors, which would lie",
        ),
        (Repository(False, {"README.md": OURS}), "is public on the hub; give --public"),
    ],
)
def test_what_belongs_to_others_or_would_be_seen_is_refused(server, folder, repository, message):
    server.repositories["me/policy"] = repository
    before = dict(repository.files)
    with pytest.raises(ConfigError, match=message):
        push_to_hub(folder, "me/policy")
    assert repository.files == before and not repository.commits


def test_a_file_that_names_a_path_of_the_machine_is_not_sent(server, folder, tmp_path):
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}"}}')
    with pytest.raises(ConfigError, match="export it again with --base-model"):
        push_to_hub(folder, "me/policy")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "them/base"}')
    push_to_hub(folder, "me/policy")


@pytest.mark.parametrize("place", ["preupload", "lfs/objects", "blobs", "commit/main", "repos/create"])
def test_a_failed_upload_is_one_line_and_says_how_to_go_on(server, folder, place):
    server.refuse[place] = 403
    with pytest.raises(ConnectionError) as caught:
        push_to_hub(folder, "me/policy")
    text = str(caught.value)
    assert "\n" not in text and text.endswith(f"push it again with `hf upload me/policy {folder} --private`")
    assert not any(repository.files for repository in server.repositories.values())


def test_the_command_refuses_before_it_exports_and_pushes_after(server, folder, monkeypatch, capsys, tmp_path):
    written = []
    monkeypatch.setattr(export, "export_run", lambda run, to, **options: written.append((run, to, options)) or to)
    command = ["export", "runs/a", str(folder), "--push"]
    assert main([*command, "policy"]) == 2 and "--push expects OWNER/NAME, got 'policy'" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main([*command, "me/policy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pcm-rl: the hub does not answer for me/policy: ") and error.count("\n") == 1
    assert not written and not server.repositories
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert main([*command, "me/policy", "--adapters", "--base-model", "them/base"]) == 0
    assert written == [("runs/a", str(folder), {"adapters": True, "base_model": "them/base"})]
    assert server.repositories["me/policy"].files == content(folder)
    assert main([*command, "me/open", "--public"]) == 0 and not server.repositories["me/open"].private
