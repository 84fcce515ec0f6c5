import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOY = Path(__file__).with_name("toy_job.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy job's module, which is also a script that is run on its own."""
    spec = importlib.util.spec_from_file_location("toy_job", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
