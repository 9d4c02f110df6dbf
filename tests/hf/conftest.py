import importlib.util

import pytest

NEEDED = ("torch", "transformers", "open_clip")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


class Unavailable(pytest.Module):
    """A test module whose imports would fail: skipped as a whole, with the reason."""

    def collect(self):
        pytest.skip(f"needs {', '.join(MISSING)} (the `export` extra)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Unavailable.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module")
def llava():
    import hf_tiny as tiny

    return tiny.llava()


@pytest.fixture(scope="module")
def clip_tower():
    import hf_tiny as tiny

    return tiny.clip()


@pytest.fixture
def attach_llava(llava, clip_tower):
    """``attach`` to the small LLaVA with its CLIP tower; detached afterwards."""
    import hf_tiny as tiny

    import edge_atp.hf

    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", clip_tower)
        return edge_atp.hf.attach(llava, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in llava.__dict__:
        edge_atp.hf.detach(llava)
