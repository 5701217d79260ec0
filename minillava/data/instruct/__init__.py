"""Instruction data from a teacher that cannot see: captions and boxes become conversations, descriptions and reasoning.

Visual Instruction Tuning (arXiv 2304.08485), section 3. `python -m minillava.data.instruct --help` runs it; in the
order of the work:

    sources.py   pictures with captions and boxes        teachers: rules.py, endpoint.py, own_model.py (interface: teacher.py)
    context.py   what the teacher reads of a picture     journal.py  every reply, kept as it comes
    prompts.py   system texts and worked examples        replies.py, filters.py, objects.py  what a reply says, and whether it may stay
    simple.py    the simple expansion of captions        report.py, card.py, stats.py  what a data set holds
"""
