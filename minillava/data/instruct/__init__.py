"""Instruction data from a teacher that cannot see: captions and boxes become conversations, descriptions and reasoning.

Visual Instruction Tuning (arXiv 2304.08485), section 3. README.md is the manual; the files in the order of the work:

    settings.py              the command's flags
    sources.py, context.py   pictures with captions and boxes, and what the teacher reads of one
    prompts.py, teacher.py   system texts and worked examples; requests, replies, and what a teacher is
    rules.py, own_model.py, endpoint.py (with body.py, secret.py)    the three teachers
    collect.py, journal.py   asking, with threads.py, and keeping every reply as it comes
    replies.py, filters.py, objects.py, simple.py    what a reply says, whether it may stay, captions as replies
    generate.py, output.py (with report.py, card.py, stats.py)       records, and the files
"""
