import pytest
from browser import chromium, jupyterlab, page  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def own_progress_file(tmp_path_factory):
    """The learner's own progress is not the tests' to change, nor to be changed by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LAB_PROGRESS", str(tmp_path_factory.mktemp("progress") / "progress.json"))
        yield


@pytest.fixture(scope="session")
def base():
    """The real base model and its tokenizer, loaded once."""
    from lora_lab import load_base

    return load_base()


@pytest.fixture(scope="session")
def tokenizer(base):
    return base[1]


@pytest.fixture
def tiny_model():
    """A random Llama small enough to run in milliseconds, with the base model's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    )
