"""The kinds of question that people ask beyond the first ten, each with its weight in a training. A kind is a function of
the scene's facts; how it is asked stands in wordings.py.
"""

from minillava.data import asked_in_a_talk as talk
from minillava.data import asked_of_groups as groups
from minillava.data import asked_of_places as places
from minillava.data import asked_to_compare as compare

NATURAL = {
    "group_yes_no": (groups.group_yes_no, 20),
    "group_list": (groups.group_list, 12),
    "group_count": (groups.group_count, 10),
    "group_where": (groups.group_where, 4),
    "group_of": (groups.group_of, 6),
    "at_place": (places.at_place, 10),
    "where_yes_no": (places.where_yes_no, 10),
    "relation_yes_no": (places.relation_yes_no, 14),
    "either_or": (places.either_or, 8),
    "beside": (places.beside, 12),
    "nearest": (places.nearest, 6),
    "background_yes_no": (compare.background_yes_no, 7),
    "pattern": (compare.pattern, 4),
    "color_of": (compare.color_of, 5),
    "more": (compare.more, 6),
    "count_yes_no": (compare.count_yes_no, 4),
    "bigger": (compare.bigger, 6),
    "biggest": (compare.biggest, 4),
    "only": (compare.only, 5),
    "besides": (compare.besides, 5),
    "both": (compare.both, 5),
    "absent": (talk.absent, 9),
    "unknown": (talk.unknown, 5),
    "cannot_tell": (talk.cannot_tell, 8),
    "small_talk": (talk.chat, 4),
    "follow_up": (talk.follow_up, 12),
}
