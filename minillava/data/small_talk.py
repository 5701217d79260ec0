"""What is said beside the picture: questions that no picture answers, greetings, and nouns that name nothing of the tiny
world; a pool of each for training, another for the test.
"""

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
