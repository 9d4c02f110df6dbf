from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bag() -> Path:
    return REPOSITORY / "launch" / "bags" / "warehouse_cell"


@pytest.fixture(scope="session")
def reference(bag) -> Path:
    return bag / "reference" / "result.mcap"


@pytest.fixture(scope="session")
def read_back():
    """Reads a .rrd file with rerun's own reader: rows of each entity, and its columns' values."""
    chunk = pytest.importorskip("rerun.chunk", reason="needs rerun 0.41, extra 'view'")

    def read(path: Path) -> SimpleNamespace:
        reader = chunk.RrdReader(path)
        rows: dict[str, int] = {}
        values: dict[str, list] = {}
        for part in reader.stream():
            entity = part.entity_path
            if part.is_static:
                continue
            rows[entity] = rows.get(entity, 0) + part.num_rows
            batch = part.to_record_batch()
            for name in ("TextLog:text", "Scalars:scalars", "TextLog:level"):
                if name in batch.schema.names:
                    column = batch.column(name).to_pylist()
                    values.setdefault(f"{entity} {name}", []).extend(v for (v,) in column)
        return SimpleNamespace(rows=rows, values=values, blueprints=reader.blueprints())

    return read
