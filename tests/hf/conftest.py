import hf_tiny as tiny
import pytest

import edge_atp.hf


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


@pytest.fixture(scope="module")
def clip_tower():
    return tiny.clip()


@pytest.fixture
def attach_llava(llava, clip_tower):
    """``attach`` to the small LLaVA with its CLIP tower; detached afterwards."""

    def call(*args, **kwargs):
        kwargs.setdefault("text_tower", clip_tower)
        return edge_atp.hf.attach(llava, tiny.TOKENIZER, *args, **kwargs)

    yield call
    if "_edge_atp_handle" in llava.__dict__:
        edge_atp.hf.detach(llava)
