"""How questions are asked: the plain wordings of the first ten kinds, those that training adds, those of the kinds beyond,
and words that only the test uses.

{a}, {many} and {name} are a thing ("a cat", "cats", "cat"), {other} a second one, {rel} a relation, {where} a place
("on the left"), {color} a colour, {here} one of HERE.
"""

HERE = (
    "",
    "",
    "",
    "",
    " in the picture",
    " in the picture",
    " in this picture",
    " here",
    " in the image",
    " in the photo",
)

PLAIN: dict[str, tuple[str, ...]] = {
    "existence": (
        "Is there {a}?",
        "Is there {a} in the picture?",
        "Do you see {a}?",
        "Can you see {a} here?",
        "Does the picture show {a}?",
        "Is {a} in the image?",
    ),
    "count_of": (
        "How many {many} are there?",
        "How many {many} do you see?",
        "How many {many} are in the picture?",
        "What is the number of {many}?",
    ),
    "count": (
        "How many objects are there?",
        "How many things do you see?",
        "How many objects are in the picture?",
        "What is the number of objects in the image?",
    ),
    "where": (
        "Where is the {name}?",
        "Where in the picture is the {name}?",
        "Where do you see the {name}?",
        "In which part of the image is the {name}?",
    ),
    "relation": (
        "Where is the {name} relative to the {other}?",
        "Where is the {name}, seen from the {other}?",
        "How is the {name} placed relative to the {other}?",
    ),
    "relation_yes_no": (
        "Is the {name} {rel} the {other}?",
        "Do you see the {name} {rel} the {other}?",
        "Is it true that the {name} is {rel} the {other}?",
    ),
    "color": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "What is the background color?",
    ),
    "group": ("Which of them is {a}?", "Which object is {a}?", "Which of the things in the picture is {a}?"),
    "eat": ("What can you eat here?", "Which thing in the picture can you eat?", "What in the picture could you eat?"),
    "list": (
        "What is in the picture?",
        "What do you see?",
        "What objects are in the image?",
        "What does the picture show?",
        "List the objects in the picture.",
    ),
    "describe": (
        "Describe the picture.",
        "Describe this image.",
        "Can you describe the picture?",
        "Tell me about this picture.",
        "What is going on in this image?",
    ),
    "fly": ("Which of them could fly?", "What in the picture could fly?", "Which thing here is able to fly?"),
    "water": (
        "Which of them lives in water?",
        "What in the picture lives in water?",
        "Which animal here lives in water?",
    ),
    "wear": (
        "What could someone wear here?",
        "Which of them could someone wear?",
        "What in the picture could a person put on?",
    ),
    "music": (
        "Which of them could make music?",
        "What could a musician play here?",
        "Which thing here is for making music?",
    ),
    "odd": (
        "Which thing does not belong with the others?",
        "Which of them is the odd one out?",
        "What does not fit with the rest?",
    ),
}
MORE: dict[str, tuple[str, ...]] = {
    "existence": (
        "Are there any {many}{here}?",
        "Do you see any {many}{here}?",
        "Can you see {a}{here}?",
        "Is this {a}?",
        "Any {many}{here}?",
    ),
    "count_of": ("How many {many} can you see{here}?", "Count the {many}."),
    "count": ("How many things are there{here}?", "How many objects can you see?", "Count the objects."),
    "where": ("Where can I find the {name}{here}?", "What is the place of the {name}?"),
    "relation_yes_no": (
        "Does the picture show {thing} {rel} the {other}?",
        "Tell me whether the {name} is {rel} the {other}.",
        "Is there {thing} {rel} the {other}?",
        "Would you say that the {name} is {rel} the {other}?",
        "Can you see {thing} {rel} the {other}?",
    ),
    "list": (
        "What is this?",
        "What is there{here}?",
        "What can you see{here}?",
        "What things are there{here}?",
        "What do you see on the picture?",
        "What is this a picture of?",
        "Which things can you see?",
        "Name everything that you see.",
        "Tell me what you see.",
    ),
    "group_yes_no": (
        "Can you tell me if there is {a}?",
        "Is {a} among them?",
        "Is there {a}{here}?",
        "Do you see {a}{here}?",
        "Are there any {many}{here}?",
        "Can you see {a}{here}?",
        "Can you see any {many}{here}?",
        "Does the picture show {a}?",
        "Is any of them {a}?",
        "Any {many}{here}?",
    ),
    "group_list": (
        "Tell me the {many} that you see.",
        "Which of the things are {many}?",
        "What {many} do you see{here}?",
        "Which {many} are there{here}?",
        "What {many} are there{here}?",
        "Which {many} can you see{here}?",
        "List the {many}{here}.",
        "Name all {many}{here}.",
        "What kind of {many} are there{here}?",
    ),
    "group_list_mass": (
        "What {name} is there{here}?",
        "Which {name} do you see{here}?",
        "What {name} can you see{here}?",
        "List the {name}{here}.",
    ),
    "group_count": (
        "Tell me how many {many} there are.",
        "How many {many} are there{here}?",
        "How many {many} do you see{here}?",
        "How many {many} can you see{here}?",
        "What is the number of {many}{here}?",
        "Count the {many}{here}.",
    ),
    "group_where": (
        "Where is the {name}{here}?",
        "Where do you see the {name}?",
        "In which part of the image is the {name}?",
    ),
    "group_of": (
        "Is the {name} {a}?",
        "Is {thing} {a}?",
        "Does the {name} count as {a}?",
        "Would you call the {name} {a}?",
    ),
    "group_of_open": ("What kind of thing is the {name}?", "What is {thing}?", "What sort of thing is {thing}?"),
    "at_place": (
        "Tell me what you see {where}.",
        "Can you tell me what is {where}?",
        "What is {where}{here}?",
        "What do you see {where}?",
        "What is {where} of the picture?",
        "Which thing is {where}?",
        "What is there {where}?",
        "What object is {where} of the image?",
        "What can you see {where}?",
    ),
    "at_place_yes_no": (
        "Is there anything {where}?",
        "Is something {where}?",
        "Do you see anything {where}{here}?",
        "Is there something {where} of the picture?",
    ),
    "where_yes_no": (
        "Tell me if the {name} is {where}.",
        "Is the {name} {where}?",
        "Is the {name} {where} of the picture?",
        "Do you see the {name} {where}?",
        "Is there {thing} {where}?",
        "Is it true that the {name} is {where}?",
        "Can you see {thing} {where}?",
    ),
    "either_relation": (
        "Is the {name} {rel} or {opposite} the {other}?",
        "Which is it: is the {name} {rel} or {opposite} the {other}?",
        "What is true: is the {name} {rel} or {opposite} the {other}?",
        "Do you see the {name} {rel} or {opposite} the {other}?",
    ),
    "either_place": (
        "Tell me: is the {name} {where} or {elsewhere}?",
        "Is the {name} {where} or {elsewhere}?",
        "Which is it: is the {name} {where} or {elsewhere}?",
        "Is the {name} {where} of the picture or {elsewhere}?",
    ),
    "either_color": (
        "Is the background {color} or {wrong}?",
        "Which color is the background, {color} or {wrong}?",
        "Does the picture have {a_color} or {a_wrong} background?",
    ),
    "either_count": (
        "Are there {number} or {wrong} {many}{here}?",
        "Do you see {number} or {wrong} {many}?",
        "How many {many} are there, {number} or {wrong}?",
    ),
    "either_name": (
        "Is there {a} or {b}{here}?",
        "Do you see {a} or {b}{here}?",
        "Which one is there{here}, {a} or {b}?",
        "Is it {a} or {b}?",
    ),
    "beside": (
        "Can you tell me what is {rel} the {name}?",
        "Tell me what you see {rel} the {name}.",
        "Does the picture show something {rel} the {name}, and what?",
        "What is {rel} the {name}?",
        "What do you see {rel} the {name}?",
        "Which thing is {rel} the {name}?",
        "What is there {rel} the {name}?",
        "Which object do you see {rel} the {name}?",
        "What can you see {rel} the {name}?",
    ),
    "background_yes_no": (
        "Is the background {color}?",
        "Is it on {a_color} background?",
        "Does the picture have {a_color} background?",
        "Is the background of the picture {color}?",
        "Do you see {a_color} background?",
        "Is the color of the background {color}?",
    ),
    "pattern": (
        "What pattern does the background have?",
        "Which pattern is on the background?",
        "What is the pattern of the background?",
    ),
    "pattern_yes_no": (
        "Is the background {pattern}?",
        "Does the picture have a {pattern} background?",
        "Is it on a {pattern} background?",
    ),
    "more": (
        "Are there more {many} than {others}{here}?",
        "Do you see more {many} than {others}?",
        "Is the number of {many} larger than that of {others}?",
        "Can you see more {many} than {others}{here}?",
    ),
    "more_open": (
        "What are there more of, {many} or {others}?",
        "Are there more {many} or more {others}{here}?",
        "Which do you see more of, {many} or {others}?",
    ),
    "count_yes_no": (
        "Are there {number} {many}{here}?",
        "Do you see {number} {many}{here}?",
        "Is the number of {many} {number}?",
        "Can you see {number} {many}{here}?",
    ),
    "only": (
        "Is there only {a}{here}?",
        "Do you see only {a}{here}?",
        "Is the {name} the only thing{here}?",
        "Is the {name} alone{here}?",
    ),
    "besides": (
        "What else is there besides the {name}?",
        "What do you see besides the {name}?",
        "What is there other than the {name}?",
        "What else is{here}, apart from the {name}?",
    ),
    "besides_yes_no": (
        "Is there anything besides the {name}{here}?",
        "Do you see anything else besides the {name}?",
        "Is there something other than the {name}{here}?",
    ),
    "both": (
        "Is there both {a} and {b}{here}?",
        "Do you see {a} and {b}{here}?",
        "Are there {a} and {b}{here}?",
        "Can you see both {a} and {b}?",
    ),
    "biggest": (
        "Tell me what the biggest thing is.",
        "What is the biggest thing{here}?",
        "Which thing is the biggest?",
        "What is the largest object{here}?",
        "Which object is the largest{here}?",
        "What is the biggest object?",
    ),
    "smallest": (
        "What is the smallest thing{here}?",
        "Which thing is the smallest?",
        "What is the smallest object{here}?",
    ),
    "bigger": (
        "Is the {name} bigger than the {other}?",
        "Is the {name} larger than the {other}?",
        "Is it true that the {name} is bigger than the {other}?",
    ),
    "bigger_open": (
        "Which is bigger, the {name} or the {other}?",
        "What is larger, the {name} or the {other}?",
        "Which one is bigger: the {name} or the {other}?",
    ),
    "nearest": (
        "Can you tell me what is nearest to the {name}?",
        "Tell me which thing is closest to the {name}.",
        "What is nearest to the {name}?",
        "Which thing is closest to the {name}?",
        "What is closest to the {name}{here}?",
        "Which object is nearest to the {name}?",
        "What is next to the {name}?",
    ),
    "color_of": (
        "Tell me what color the {name} has.",
        "What color is the {name}?",
        "What is the color of the {name}?",
        "Which color does the {name} have?",
    ),
    "color_of_yes_no": (
        "Is the {name} {color}?",
        "Is the color of the {name} {color}?",
        "Do you see {a_color} {name}?",
    ),
    "absent": (
        "Where is the {name}?",
        "Where in the picture is the {name}?",
        "What color is the {name}?",
        "What is the {name} doing?",
        "Why is there {a}?",
        "How big is the {name}?",
        "Is the {name} {where}?",
        "Is the {name} {rel} the {other}?",
        "What is {rel} the {name}?",
        "Is the {other} {rel} the {name}?",
        "Is the {name} above or below the {other}?",
        "What is nearest to the {name}?",
        "Is there anything besides the {name}?",
        "What is the name of the {name}?",
        "Who owns the {name}?",
        "Where is the {name} relative to the {other}?",
        "Is the {name} bigger than the {other}?",
        "Tell me about the {name}.",
    ),
    "unknown": (
        "Is there {a}{here}?",
        "Do you see {a}{here}?",
        "Can you see {a}{here}?",
        "Are there any {many}{here}?",
        "Does the picture show {a}?",
        "Is {a} in the image?",
        "Is this {a}?",
    ),
    "unknown_count": ("How many {many} are there{here}?", "How many {many} do you see{here}?"),
    "and_a": ("And {a}?", "What about {a}?", "Is there also {a}?", "And is there {a}?"),
    "and_the": ("And the {name}?", "What about the {name}?", "And where is the {name}?"),
    "and_many": ("And {many}?", "What about {many}?", "And how many {many}?"),
    "where_is_it": (
        "Where is it?",
        "And where is it?",
        "Where?",
        "Where do you see it?",
        "In which part of the picture is it?",
    ),
    "how_many_of_it": ("How many?", "How many are there?", "And how many do you see?", "How many of them are there?"),
    "how_many_things": ("How many things is that?", "How many are there?", "How many things are there?", "How many?"),
    "sure": ("Are you sure?", "Really?", "Is that true?"),
    "is_it_color": ("Is it {color}?", "And is it {color}?", "So it is {color}?"),
    "is_it_place": ("Is it {where}?", "And is it {where}?", "Is that {where}?"),
}
TRAINING: dict[str, tuple[str, ...]] = {
    kind: PLAIN.get(kind, ()) + MORE.get(kind, ()) for kind in dict.fromkeys((*PLAIN, *MORE))
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "existence": ("Is there {a} somewhere in this photo?", "Do you see {a} anywhere?", "Can you see {a} in the photo?"),
    "count_of": (
        "How many {many} can you count?",
        "Can you tell me how many {many} there are?",
        "What number of {many} do you see?",
    ),
    "count": ("How many things are in this photo?", "How many objects can you see in total?"),
    "where": (
        "Where can you see the {name}?",
        "Where about in this photo is the {name}?",
        "Tell me where the {name} is.",
    ),
    "color": ("What color do you see in the background?", "Which color is the background of this photo?"),
    "list": ("What things can you see in this photo?", "What can you see here?", "Tell me what is in the picture."),
    "group_yes_no": (
        "Is there {a} somewhere in the picture?",
        "Do you see any {many} in this photo?",
        "Does this image show {a}?",
        "Is {a} in the picture?",
    ),
    "group_list": (
        "What {many} does the picture show?",
        "Tell me which {many} you see.",
        "What are the {many} in this image?",
    ),
    "group_list_mass": ("What {name} does the picture show?", "Tell me what {name} you see."),
    "group_count": (
        "How many {many} does the picture show?",
        "How many {many} are in this photo?",
        "Tell me the number of {many}.",
    ),
    "group_where": ("Where in this picture is the {name}?", "Where can you see the {name}?"),
    "group_of": ("Is that {name} {a}?", "Would you say that the {name} is {a}?"),
    "group_of_open": ("What kind of object is {thing}?",),
    "at_place": (
        "Tell me what is {where}.",
        "What thing can you see {where} of this picture?",
        "What does the picture show {where}?",
    ),
    "at_place_yes_no": ("Can you see anything {where} of the image?", "Is there any object {where}?"),
    "where_yes_no": ("Can you see the {name} {where} of the picture?", "Would you say that the {name} is {where}?"),
    "relation_yes_no": (
        "Can you see that the {name} is {rel} the {other}?",
        "Tell me if the {name} is {rel} the {other}.",
        "Does the picture show the {name} {rel} the {other}?",
    ),
    "either_relation": (
        "Would you say that the {name} is {rel} or {opposite} the {other}?",
        "Tell me: is the {name} {rel} or {opposite} the {other}?",
    ),
    "either_place": (
        "Do you see the {name} {where} or {elsewhere}?",
        "Tell me if the {name} is {where} or {elsewhere}.",
    ),
    "either_color": ("Is that background {color} or {wrong}?", "Is the color of the background {color} or {wrong}?"),
    "either_count": ("Can you see {number} or {wrong} {many}?", "Are {number} or {wrong} {many} in the picture?"),
    "either_name": ("Can you see {a} or {b}?", "Does the picture show {a} or {b}?"),
    "beside": (
        "Tell me what is {rel} the {name}.",
        "What thing is there {rel} the {name} in this picture?",
        "What does the picture show {rel} the {name}?",
    ),
    "background_yes_no": (
        "Is that {a_color} background?",
        "Is the background color {color}?",
        "Can you see {a_color} background?",
    ),
    "pattern": ("What kind of pattern is the background?", "What pattern do you see in the background?"),
    "pattern_yes_no": ("Is that background {pattern}?", "Can you see a {pattern} background?"),
    "more": (
        "Does the picture show more {many} than {others}?",
        "Is it true that there are more {many} than {others}?",
    ),
    "more_open": ("What do you see more of, {many} or {others}?", "Do you see more {many} or more {others}?"),
    "count_yes_no": ("Does the picture show {number} {many}?", "Is it true that there are {number} {many}?"),
    "only": ("Can you see only {a}?", "Is {a} the only thing that you see?"),
    "besides": ("What else can you see besides the {name}?", "What does the picture show apart from the {name}?"),
    "besides_yes_no": (
        "Can you see anything other than the {name}?",
        "Is anything else in the picture besides the {name}?",
    ),
    "both": ("Does the picture show both {a} and {b}?", "Can you see {a} and {b} here?"),
    "biggest": ("What thing is the biggest in this photo?", "Tell me which object is the biggest."),
    "smallest": ("Which object is the smallest in this picture?", "Tell me which thing is the smallest."),
    "bigger": ("Would you say that the {name} is bigger than the {other}?", "Is that {name} larger than the {other}?"),
    "bigger_open": ("Tell me which is bigger, the {name} or the {other}.", "Is the {name} or the {other} bigger?"),
    "nearest": ("What thing is nearest to the {name} in the picture?", "Tell me what is closest to the {name}."),
    "color_of": ("What color does the {name} have?", "Tell me the color of the {name}."),
    "color_of_yes_no": ("Would you say that the {name} is {color}?", "Is that {name} {color}?"),
    "absent": (
        "Where can you see the {name}?",
        "Which color does the {name} have?",
        "Where about is the {name} in this photo?",
        "How old is the {name}?",
        "Can you see the {name} {where} of the picture?",
        "Tell me if the {name} is {rel} the {other}.",
        "What do you see {rel} the {name}?",
        "Why is the {name} here?",
    ),
    "unknown": (
        "Is there {a} somewhere in the picture?",
        "Do you see any {many} in this photo?",
        "Can you find {a}?",
        "Is {a} in the picture?",
    ),
    "unknown_count": ("How many {many} can you count?", "Tell me the number of {many}."),
    "and_a": ("And what about {a}?", "Do you also see {a}?"),
    "and_the": ("And what about the {name}?", "And where do you see the {name}?"),
    "and_many": ("And what about {many}?", "And how many {many} are there?"),
    "where_is_it": ("Where can you see it?", "And where in the picture is it?"),
    "how_many_of_it": ("How many of those do you see?", "And how many are there?"),
    "how_many_things": ("And how many are there?", "How many things are those?"),
    "sure": ("Are you really sure?",),
    "is_it_color": ("Is that {color}?",),
    "is_it_place": ("Do you see it {where}?",),
}
REL_WORDS = {
    "to the left of": ("to the left of", "to the left of", "left of", "on the left of"),
    "to the right of": ("to the right of", "to the right of", "right of", "on the right of"),
    "above": ("above", "above", "over", "higher than"),
    "below": ("below", "below", "under", "beneath", "lower than"),
}

# ---- What no picture tells

CANNOT_TELL = "I cannot tell that from the picture."


def _listed(text: str) -> tuple[str, ...]:
    """What stands between the slashes."""
    return tuple(" ".join(each.split()) for each in text.split(" / "))


WHAT_NO_PICTURE_TELLS = {
    "training": _listed("""
    What time is it? / What day is it? / What year is it? / What is the date today? / What month is it? / Who
    made this picture? / Who drew this? / Who painted it? / Who are they? / Who is the king of {country}? /
    Where was this photo taken? / Where was it made? / When was this picture made? / When was it painted? / Why
    was it made? / How much does it cost? / How much is the {name}? / What is the price of the {name}? / How old
    is the {name}? / How heavy is the {name}? / How old is this picture? / What is your name, {name}? / What is
    the {name} called? / What is the name of the {name}? / What is the {name} thinking? / What is the {name}
    doing? / What does the {name} want? / Why is the {name} here? / Why is there {a}? / Is the {name} happy? /
    Is the {name} sad? / Is the {name} old? / Is the {name} hungry? / Is the {name} for sale? / Who owns the
    {name}? / Who bought the {name}? / Does the {name} like {many}? / Where does the {name} live? / What will
    the {name} do next? / Is the {name} real? / What is {digit} + {digit}? / What is {digit} times {digit}? /
    How much is {digit} and {digit}? / What is the root of {digit}? / What is the capital of {country}? / Where
    is {country}? / How many people live in {country}? / Who won the game? / Is it raining? / Is it cold? / What
    is the weather like? / Is it day or night? / Will it rain tomorrow? / Is it summer? / Do you like {many}? /
    Do you like music? / Do you have {a}? / Can you fly? / Can you sing? / How old are you? / Where do you live?
    / Do you sleep? / Are you a robot? / Are you happy? / What do you think? / What do you like? / What do you
    want? / Do you love me? / Tell me a story. / Tell me a secret. / Sing a song. / Write a poem. / Write a
    letter to {country}. / Translate this. / Say something. / Draw {a}. / Paint {a} for me. / Give me {a}. /
    Make me a sandwich. / Play a game with me. / Help me with my homework. / What will happen next? / What
    happened before? / What is behind the picture? / What can you hear? / What does it smell like? / How does
    {a} taste? / Which {name} is better? / Should I buy {a}? / Where can I buy {a}? / I like {many}. / I am
    tired. / My name is Tom. / Who is the best? / Who is that man? / What is my name? / Who am I? / What is
    love? / Why? / What does it mean? / Which camera was used? / What is the meaning of this? / How do I cook
    {many}? / Is this art? / Is it expensive? / How was your day? / What is the news? / Who wrote this? / Who
    sent it? / Who sold the {name}? / Who found the {name}? / Who lives here? / Who is there? / Who paid for it?
    / Who gave you the {name}? / Who is your friend? / Who is the author? / Who will come? / Which month is it?
    / Which day is today? / What is the time? / How late is it? / How long did it take? / How far is it to
    {country}? / How do you feel? / How are you? / How do I get there? / How was it made? / How many people made
    it? / How fast is the {name}? / When is lunch? / When does it end? / When will it be done? / When was the
    {name} bought? / When was the {name} made? / When did it happen? / Where is your house? / Where are we? /
    Where did it happen? / Where do they live? / Where was the {name} bought? / Where is the {name} from? / Why
    do you ask? / Why did they do it? / Why not? / Why is the {name} there? / Why was the {name} made? / Is it
    old? / Is it new? / Is it yours? / Is it hot outside? / Is it true? / Is it a game? / Is it late? / Is it
    windy? / Is it Monday? / Is it autumn? / Is it hot? / Is the {name} hot? / Is the {name} clean? / Is the
    {name} asleep? / Is the {name} broken? / Is the {name} alive? / Is the {name} good? / Is the {name} angry? /
    Does the {name} sleep? / Does the {name} have a name? / Does the {name} work? / Can the {name} talk? / Can
    the {name} swim? / Can you hear me? / Can you help me? / Can you speak French? / Can you cook? / Do you know
    me? / Do you know {country}? / Do you want {a}? / Do you eat {many}? / Do you dream? / Do you have friends?
    / Do you like bread? / Do you like the {name}? / Are you alive? / Are you a person? / Are you tired? / Are
    you there? / Are you smart? / Are you from {country}? / Will it snow? / Will you help me? / Should I go? /
    Should I sell the {name}? / What is {digit} minus {digit}? / What is half of {digit}? / What is {digit} and
    {digit}? / What is the capital? / What is the capital of the country? / What is the tallest mountain? / What
    is the answer? / What is my age? / What is your age? / What is your job? / What did you eat? / What did he
    say? / What was that? / What makes you happy? / What should I do? / What song is that? / What does the
    {name} eat? / What does the {name} sound like? / What does the {name} feel? / What does the {name} cost? /
    What is inside the {name}? / What happens now? / What happened to the {name}? / What day is tomorrow? / What
    hour was it? / Tell me a lie. / Tell me the time. / Tell me about {country}. / Tell me something. / Tell me
    the news. / Tell me a tale. / Sing for me. / Dance with me. / Write me a letter. / Write a book. / Write
    some code. / Read this to me. / Call my mother. / Open the door. / Stop. / Go away. / Help! / I do not know.
    / I love you. / I am hungry. / I am happy. / I have {a}. / Okay. / Nice. / Good. / You are funny. / My
    {name} is better. / The {name} is nice. / Please help. / Forget everything. / Who is the president? / Who is
    the queen of {country}? / blah blah / asdf
"""),
    "held out": _listed("""
    What hour is it? / Which year is this? / Who took this? / Who took this photo? / Who made it? / When was
    this photo taken? / Where was this picture made? / How much did the {name} cost? / What does the {name}
    think? / Is the {name} tired? / Who does the {name} belong to? / What is {digit} plus {digit}? / What is the
    capital of Spain? / Who is the president of {country}? / Is it warm? / Is it winter? / Do you like cheese? /
    Can you dance? / Where are you from? / Are you human? / Tell me a joke. / Sing me a song. / Write a story. /
    What happens next? / What does the {name} smell like? / Where can I find {a} to buy? / What is the name of
    this {name}? / Why is it here? / What day was it? / How old is it?
"""),
}
COUNTRIES = {
    "training": ("France", "Italy", "China", "Peru", "India", "Kenya", "Norway", "Brazil"),
    "held out": ("Japan", "Egypt", "Poland"),
}

HELLO, NAME, WELCOME, BYE = (
    "Hello! Ask me about the picture.",
    "I am minillava, a small model that answers questions about pictures.",
    "You are welcome.",
    "Good bye!",
)
SURE = "That is what I see."
SMALL_TALK: dict[str, dict[str, str]] = {
    "training": {
        **dict.fromkeys(
            _listed(
                "Hello! / Hello. / Hi / Hi! / Hey! / Hi there. / Hey there! / Good morning! / Good evening. / Good day!"
            ),
            HELLO,
        ),
        **dict.fromkeys(
            _listed(
                "Who are you? / What are you? / What is your name? / What can you do? / Tell me about you. / "
                "And who are you? / Tell me what you are. / Please tell me who you are."
            ),
            NAME,
        ),
        **dict.fromkeys(
            _listed(
                "Thank you! / Thank you. / Thanks / Thanks a lot! / Thanks so much. / Thank you very much. / Great, thanks! / Okay, thank you."
            ),
            WELCOME,
        ),
        **dict.fromkeys(
            _listed("Good bye / Bye! / Bye. / See you! / See you later! / Good night! / Bye bye. / Bye, see you!"), BYE
        ),
    },
    "held out": {
        **dict.fromkeys(_listed("Hello there! / Hey / Good morning."), HELLO),
        **dict.fromkeys(_listed("Tell me who you are. / Who are you, please?"), NAME),
        **dict.fromkeys(_listed("Thank you a lot. / Many thanks!"), WELCOME),
        **dict.fromkeys(_listed("Bye, thanks! / Good bye, see you!"), BYE),
    },
}

# ---- Nouns that name nothing of the tiny world


def _nouns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS: dict[str, tuple[str, ...]] = {
    "training": _nouns(
        "man woman child baby person boy girl queen king wizard witch pirate ninja knight soldier teacher doctor "
        "nurse farmer robot alien ghost monster vampire mermaid unicorn dinosaur goat camel donkey deer squirrel "
        "rat eagle swan pigeon crow peacock shark dolphin crab lobster shrimp jellyfish seal ant mosquito worm "
        "beetle table sofa couch desk shelf lamp clock vase carpet pillow blanket curtain door fridge oven fork "
        "knife plate bowl cup glass bottle pan pot kettle toaster bread cheese soup salad potato tomato onion "
        "mushroom grape cherry mango kiwi plum pie milk juice coffee tea mountain river lake beach island forest "
        "desert volcano cloud star rainbow bridge road lighthouse windmill tent fountain statue flag map globe pen "
        "ruler eraser stapler coin ring necklace crown watch belt sock skirt tie umbrella backpack wallet key piano "
        "banjo cello sword shield bow arrow bomb tank submarine ufo tram scooter elevator snowman puppet doll kite "
        "balloon puzzle racket helmet printer microphone microscope telescope battery fan broom mop sponge soap "
        "towel comb saw drill nail screw rope anchor brick"
    ),
    "held out": _nouns(
        "dragon elf giant clown astronaut cowboy princess prince policeman sailor chef hamster gorilla koala llama "
        "moose otter beaver badger raccoon leopard cheetah rhino hippo buffalo ostrich seagull sparrow goose raven "
        "starfish scorpion grasshopper caterpillar wardrobe dresser stove blender napkin jar mug pumpkin cucumber "
        "pepper papaya fig raspberry pancake waffle noodle omelette chocolate waterfall glacier cave planet comet "
        "pyramid igloo barn tunnel subway sled parachute compass hourglass bracelet earring wig mask xylophone "
        "tambourine domino crayon chainsaw syringe thermometer feather skeleton tooth"
    ),
}
