import pytest
from repository import ROOT

from data_pipelines.config import DataConfig
from launcher.slurm.profile import load_cluster
from xlpretrain import schema
from xlpretrain.config import run_config
from xlpretrain.file_system.credentials import is_secret_file, is_secret_name, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID_TOKEN",
        "HF_TOKEN",
        "hfToken",
        "log.wandb.api_key",
        "wandb.apikey",
        "OPENAI_API_KEYS",
        "PGPASSWORD",
        "DB_PASS",
        "db.passwd",
        "GITHUB_PAT",
        "SLURM_JWT",
        "client_secret",
        "SECRETS",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "ssh-passphrase",
        "KEY",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "num_tokens",
        "block_tokens",
        "MONKEY",
        "state_keys",
        "PATH",
        "PWD",
        "COMPASS",
        "tokenizer",
        "KEYMAP",
    ],
)
def test_names_that_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.local",
        ".netrc",
        "id_rsa",
        "id_ed25519.bak",
        "server.pem",
        "site.key",
        "credentials",
        "Credentials.json",
        ".token",
        "tokens.json",
        "hf_token.txt",
        "wandb_api_key",
        "apikeys.yaml",
        "secrets.toml",
    ],
)
def test_files_of_secrets(name: str) -> None:
    assert is_secret_file(name)


@pytest.mark.parametrize(
    "name",
    ["token.py", "secrets.py", "tokens.py", "tokenizer.json", "special_tokens.json", "quickstart.yaml"],
)
def test_files_that_are_no_secrets(name: str) -> None:
    assert not is_secret_file(name)


def test_values_are_searched_for_unless_they_are_short() -> None:
    environment = {"HF_TOKEN": "hf_0123456789", "DB_PASSWORD": "short", "HOME": "/home/someone"}
    assert secret_values(environment) == ["hf_0123456789"]


def test_no_key_of_ours_and_no_file_of_ours_is_taken_for_a_secret() -> None:
    known = [load_cluster(ROOT / "slurm" / "clusters" / "example.yaml")]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        known.append(schema.load(DataConfig, path) if path.stem.endswith("_data") else run_config.load(path))
    keys = {key for config in known for key, *_ in schema.explain(config)}
    assert len(keys) > 80
    assert not [key for key in keys if is_secret_name(key)]
    folders = ("launcher", "data_pipelines", "xlpretrain", "configs")
    files = [path.name for folder in folders for path in (ROOT / folder).rglob("*.*")]
    assert not [name for name in files if is_secret_file(name)]
