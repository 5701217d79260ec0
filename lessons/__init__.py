"""The course: lessons to read, exercises to write, and what checks them. See lessons/README.md."""

import minillava  # noqa: F401 (first of all: from here on Ctrl-C is quiet, while PyTorch is imported)
