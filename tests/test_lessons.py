"""The notebooks are what their sources say, and can be read: run in order, without errors, small, each picture
described.

`python -m pytest -m lessons` also runs every lesson again, which takes minutes.
"""

import re

import nbformat
import pytest

build = pytest.importorskip("lessons.build")
SOURCES = build.sources()


@pytest.fixture(params=SOURCES, ids=lambda source: source.stem)
def source(request):
    return request.param


@pytest.fixture
def notebook(source):
    return nbformat.read(build.notebook_path(source), as_version=4)


def outputs(notebook):
    return [output for cell in build.code_cells(notebook) for output in cell.outputs]


def test_every_notebook_has_a_source():
    notebooks = {path.stem for path in build.LESSONS.glob("*.ipynb")}
    assert notebooks == {source.stem for source in SOURCES}


def test_is_not_stale(source):
    build.check(source)


def test_ran_in_order_without_errors(notebook):
    ran = [cell.execution_count for cell in build.code_cells(notebook) if cell.source.strip()]
    assert ran == list(range(1, len(ran) + 1))
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert all(output.get("name") != "stderr" for output in outputs(notebook))


def test_is_small(source):
    assert build.notebook_path(source).stat().st_size <= 1024 * build.MAX_KB


def test_every_picture_is_described(notebook):
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"].get("alt", "")) > 20
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(alt.strip() for alt in re.findall(r"!\[(.*?)\]\(", prose))


def test_ends_with_three_questions(notebook):
    """Each with its answer in a fold; the number to predict has a fold of its own."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose.count("<details>") == prose.count("</details>") >= 3


def test_check_finds_a_changed_source(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LESSONS", tmp_path)
    source = tmp_path / "src" / "00_new.py"
    source.parent.mkdir()
    source.write_text("# %% [markdown]\n# # 00 · New\n\n# %%\nprint(1)\n")
    with pytest.raises(build.StaleError, match="has not been built"):
        build.check(source)
    build.notebook_path(source).write_text(build.as_text(build.read_source(source)))
    build.check(source)
    source.write_text(source.read_text().replace("print(1)", "print(2)"))
    with pytest.raises(build.StaleError, match="is not what its source says"):
        build.check(source)


def test_streams_are_joined_and_stderr_taken_out():
    streams = [
        nbformat.v4.new_output("stream", name=name, text=text)
        for name, text in (("stdout", "a"), ("stderr", "!"), ("stdout", "b"))
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1", outputs=streams, metadata={"execution": {}})]
    )
    assert build.normalize(notebook) == "!"
    assert [output.text for output in outputs(notebook)] == ["ab"] and not notebook.cells[0].metadata


@pytest.mark.lessons
def test_runs(source, monkeypatch):
    # on a busy machine two threads spend most of their time waiting for each other
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = build.read_source(source)
    seconds, _ = build.run(notebook)
    assert seconds < 2 * build.MAX_SECONDS  # the build itself holds to MAX_SECONDS; a test machine may be busy
    assert len(build.as_text(notebook)) < 1024 * build.MAX_KB
