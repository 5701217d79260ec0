"""The course: lessons to read, exercises to write, and what checks them. See lessons/README.md."""
