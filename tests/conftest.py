import gc
import math
import os

import build_notebooks
import lesson_runs
import nbformat
import pytest
import torch
from browser import chromium, jupyterlab, new_page, page, served  # noqa: F401
from hypothesis import settings
from small_site import built  # noqa: F401

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing here compiles, and each process imports the compiler for seconds
gc.set_threshold(50_000)  # a tenth less time for what makes many objects: imports, plans, small models
LESSON = "test_notebook_runs"
# Files that `make check` leaves out; so are single tests marked slow, and all with a page.
SLOW = {"test_benchmarks", "test_cache", "test_colab", "test_devices", "test_distributed", "test_exercises",
        "test_finetune", "test_gpu_8bit", "test_gpu_course", "test_handout", "test_ipywidgets_7", "test_lesson_claims",
        "test_memory", "test_merging", "test_models", "test_perturb", "test_pocket", "test_public_calls",
        "test_publish", "test_setup", "test_shipping", "test_site", "test_site_questions", "test_sweep", "test_targets"}


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="lessons with all their steps, and the tests of the night")


def pytest_configure(config):
    settings.register_profile("shared", deadline=None)  # how long an example takes is the machine's affair
    settings.load_profile("shared")
    config.addinivalue_line("markers", "slow: left out by make check")
    config.addinivalue_line("markers", "nightly: minutes for what other tests nearly cover; run by --whole, or by name")
    if hasattr(config, "workerinput"):  # one of several processes, none of which has the cores for itself
        os.environ["OMP_NUM_THREADS"] = lesson_runs.THREADS  # of what it starts; its own torch is loaded already
        torch.set_num_threads(int(lesson_runs.THREADS))


def leaves_out_nightly(config):
    """Whether neither --whole nor the name of a file or of a test asks for them."""
    named = config.option.keyword or any(".py" in argument for argument in config.args)
    return not (config.getoption("--whole") or named)


def pytest_report_header(config):
    return "tests marked nightly: left out; --whole runs them" if leaves_out_nightly(config) else None


def pytest_collection_modifyitems(config, items):
    """The longest first: pages, lessons, slow files."""
    if leaves_out_nightly(config):
        tonight = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=tonight)
        items[:] = [item for item in items if item not in tonight]

    def turn(item):
        if "chromium" in item.fixturenames:
            return 0, 0
        if getattr(item, "originalname", None) != LESSON:
            return 2 if item.path.stem in SLOW else 3, 0
        path = item.callspec.params["path"]
        if path.stem in lesson_runs.TOGETHER:
            return 1, -math.inf
        return 1, -sum(build_notebooks.seconds(nbformat.read(path, 4)))

    for item in items:
        if item.path.stem in SLOW or "chromium" in item.fixturenames or getattr(item, "originalname", None) == LESSON:
            item.add_marker(pytest.mark.slow)
    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)  # with `-p no:xdist` there is no such hook
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        """Gives the tests of a file to one process, all pages to one, and each lesson to any."""

        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file.startswith("tests/pages/"):
                return "pages"
            if not test.startswith(LESSON):
                return file
            return "go on" if any(name in test for name in lesson_runs.TOGETHER) else nodeid

    return ByGroup(config, log)


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


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with a model that has the base's tokens, and six small layers; lessons name layer 5."""
    import torch
    import transformers
    from lora_lab import cache

    folder = tmp_path_factory.mktemp("small")
    config = transformers.AutoConfig.from_pretrained(cache.model_folder())
    config.update(dict(num_hidden_layers=6, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=16))
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(cache.model_folder()).save_pretrained(folder)
    return folder


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
