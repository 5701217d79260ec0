"""Makes the notebooks: lessons/src/NN_name.py (jupytext's percent format) is run from top to bottom and becomes
lessons/NN_name.ipynb.

    python -m lessons.build              # all lessons
    python -m lessons.build 03 05        # these
    python -m lessons.build --prose 03   # new text around the old outputs, without running: only if the code is unchanged
    python -m lessons.build --check      # runs nothing; fails if a notebook is not what its source says

After the title (the first cell, markdown) the build puts two cells that are the same in every lesson: the one that
installs in Colab and goes to the repository's root, and the one that draws what is built so far. A source contains
neither. It says `from lessons import plots` for itself. A notebook is written only if no cell raises, and it stays
under MAX_KB and MAX_SECONDS. Building twice gives the same bytes wherever the results are the same: what changes from
run to run (cell ids, times, the machine's Python) is taken out.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from minillava.files import write_atomically

LESSONS = Path(__file__).resolve().parent
ROOT = LESSONS.parent
MAX_KB, MAX_SECONDS = 600, 90
SETUP = """\
# In Colab, clone or upload the project to /content/minillava first; this cell installs what it needs. At home it only
# goes to the project's folder.
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    if not os.path.exists("/content/minillava"):
        raise SystemExit("Clone or upload the project to /content/minillava, then run this cell again.")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "/content/minillava/requirements.txt"], check=True)
    os.chdir("/content/minillava")
elif os.path.basename(os.getcwd()) == "lessons":
    os.chdir("..")
sys.path.insert(0, os.getcwd())"""
PROGRESS = """\
from lessons import plots

plots.progress({number})"""


class StaleError(Exception):
    """A notebook that does not fit its source, in one sentence."""


def sources(numbers: list[str] | None = None) -> list[Path]:
    """The lessons' sources in order, or those with the given numbers."""
    found = sorted((LESSONS / "src").glob("[0-9][0-9]_*.py"))
    for number in numbers or []:
        if not any(path.name.startswith(f"{number}_") for path in found):
            raise SystemExit(
                f"build: there is no lesson {number}; there are {', '.join(path.name[:2] for path in found)}."
            )
    return [path for path in found if not numbers or path.name[:2] in numbers]


def notebook_path(source: Path) -> Path:
    return LESSONS / f"{source.stem}.ipynb"


def read_source(source: Path):
    """The notebook that a source describes, not yet run."""
    notebook = nbformat.v4.new_notebook()
    title, *rest = jupytext.read(source, fmt="py:percent").cells
    if title.cell_type != "markdown" or not title.source.startswith(f"# {source.name[:2]} "):
        raise SystemExit(f"build: {source.name} must begin with a markdown cell, '# {source.name[:2]} · ...'.")
    shared = [nbformat.v4.new_code_cell(text) for text in (SETUP, PROGRESS.format(number=int(source.name[:2])))]
    notebook.cells = [title, *shared, *rest]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    return notebook


def run(notebook) -> tuple[float, str]:
    """Run all cells in the repository's root. Returns the seconds and what went to stderr, which is not kept."""
    began, cpu = time.monotonic(), _children_seconds()
    client = NotebookClient(
        notebook,
        startup_timeout=600,  # of the kernel, on a busy machine
        timeout=20 * MAX_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.startup_timeout = 20 * MAX_SECONDS  # the machine may be busy
    client.extra_arguments = ["--log-level=ERROR"]
    client.execute()
    # on a busy machine the time on the clock says nothing about the lesson
    seconds = min(time.monotonic() - began, _children_seconds() - cpu)
    return seconds, normalize(notebook)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def normalize(notebook) -> str:
    """Take out what differs from run to run: stderr (returned), times of execution, results' metadata that say nothing."""
    errors = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                errors.append(output.text)
            elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text  # how a text is cut into messages depends on the machine's speed
            else:
                kept.append(output)
        cell.outputs = kept
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    return "".join(errors)


def build(source: Path) -> str:
    """Run one lesson and write its notebook. Returns a line about it; SystemExit if a cell raises or a limit is passed."""
    notebook = read_source(source)
    try:
        seconds, errors = run(notebook)
    except (CellExecutionError, CellTimeoutError) as error:
        raise SystemExit(f"build: {source.name} was not written, since a cell fails.\n{error}") from None
    text = as_text(notebook)
    kilobytes = len(text.encode()) / 1024
    if kilobytes > MAX_KB:
        raise SystemExit(f"build: {source.name} was not written: {kilobytes:.0f} KB are more than {MAX_KB}.")
    if seconds > MAX_SECONDS:
        raise SystemExit(
            f"build: {source.name} was not written: it takes {seconds:.0f} seconds, more than {MAX_SECONDS}."
        )
    write_atomically(notebook_path(source), text)
    return f"{source.stem:24} {seconds:5.1f} s {kilobytes:6.0f} KB" + (
        f"\n  on stderr, not kept: {errors.strip()}" if errors.strip() else ""
    )


def as_text(notebook) -> str:
    return nbformat.writes(notebook) + "\n"


def reword(source: Path) -> str:
    """The source's text around the outputs that the notebook has, without running anything.

    StaleError if the code differs.
    """
    new, old = read_source(source), _read_notebook(source)
    new_code, old_code = code_cells(new), code_cells(old)
    if [cell.source for cell in new_code] != [cell.source for cell in old_code]:
        raise StaleError(
            f"the code of {source.name} has changed, so it must run: python -m lessons.build {source.name[:2]}"
        )
    for cell, ran in zip(new_code, old_code):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    write_atomically(notebook_path(source), as_text(new))
    return f"{source.stem:24} new text, old outputs"


def check(source: Path) -> None:
    """StaleError if the committed notebook has other cells than its source."""
    new, old = read_source(source), _read_notebook(source)
    if [(cell.cell_type, cell.source) for cell in new.cells] != [(cell.cell_type, cell.source) for cell in old.cells]:
        raise StaleError(
            f"{notebook_path(source).name} is not what its source says: python -m lessons.build {source.name[:2]}"
        )


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _read_notebook(source: Path):
    if not notebook_path(source).is_file():
        raise StaleError(f"{notebook_path(source).name} has not been built: python -m lessons.build {source.name[:2]}")
    return nbformat.read(notebook_path(source), as_version=4)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="lessons.build", description="Run the lessons' sources and write their notebooks."
    )
    parser.add_argument("numbers", nargs="*", metavar="NN", help="the lessons' numbers, such as 03; all without any")
    parser.add_argument(
        "--check", action="store_true", help="run nothing, and fail if a notebook is not what its source says"
    )
    parser.add_argument("--prose", action="store_true", help="run nothing, and give the notebooks their sources' text")
    flags = parser.parse_args()
    stale = []
    for source in sources(flags.numbers):
        try:
            if flags.check:
                check(source)
            else:
                print(reword(source) if flags.prose else build(source), flush=True)
        except StaleError as error:
            stale.append(str(error))
    if stale:
        sys.exit("build: " + "\nbuild: ".join(stale))


if __name__ == "__main__":
    main()
