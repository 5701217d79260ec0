"""What people call things besides their names: words for several names at once ("bird", "hat"), other words for one
("plane"), and each name's colour.
"""

from minillava.data.scenes import GROUPS, NAMES


def _split(**lists: str) -> dict[str, tuple[str, ...]]:
    return {word.replace("_", " "): tuple(names.split(", ")) for word, names in lists.items()}


MEMBERS: dict[str, tuple[str, ...]] = GROUPS | _split(
    fruit="apple, banana, pear, peach, lemon, pineapple, strawberry, watermelon, coconut",
    vegetable="carrot, eggplant",
    dessert="doughnut, cookie, cupcake, ice cream, birthday cake, lollipop",
    cake="cupcake, birthday cake",
    bird="penguin, owl, duck, parrot, rooster, flamingo",
    insect="butterfly, bee",
    reptile="turtle, snake, crocodile",
    flower="rose, tulip, sunflower, hibiscus, hyacinth",
    ball="basketball, baseball, soccer ball, volleyball",
    boat="sailboat, canoe",
    furniture="chair, bed",
    clothing="t-shirt, dress, kimono, scarf, coat, top hat, hiking boot, cap",
    instrument="guitar, violin, trumpet, saxophone, accordion, drum, flute, harp",
    hat="top hat, cap",
    bunny="rabbit",
    plane="airplane",
    bike="bicycle",
    motorbike="motorcycle",
    train="locomotive",
    truck="fire engine",
    cab="taxi",
    phone="telephone",
    TV="television",
    computer="laptop",
    burger="hamburger",
    donut="doughnut",
    football="soccer ball",
    boot="hiking boot",
    shoe="hiking boot",
    shirt="t-shirt",
    jacket="coat",
    torch="flashlight",
    book="notebook",
    bag="briefcase",
    tree="palm tree",
)
_VAGUE = ("household item", "office item", "device", "tool")  # a spoon is a tool to some
# what some would count and others not: beside it, nothing is asked about the word
ARGUABLE: dict[str, frozenset[str]] = {
    word: frozenset(names)
    for word, names in _split(
        food="fish, duck",
        fruit="avocado, eggplant",
        vegetable="avocado",
        dessert="apple, banana, pear, peach, pineapple, strawberry, watermelon, pretzel, croissant",
        insect="spider, snail",
        reptile="frog",
        flower="cactus, shamrock, seedling",
        furniture="mirror, bathtub, toilet, ladder",
        bike="motorcycle",
        truck="ambulance, tractor, car",
        cab="car",
        computer="joystick",
        bag="envelope",
        torch="candle",
        clothing="boxing glove",
        piece_of_clothing="boxing glove",
        sports_item="bicycle",
    ).items()
} | {word: frozenset(name for other in _VAGUE if other != word for name in GROUPS[other]) for word in _VAGUE}
COLLECTIVE = tuple(word for word, names in MEMBERS.items() if len(names) > 1)
MASS = ("food", "furniture", "clothing")  # they have no plural

SEVERAL = "several colors"
COLOR_OF: dict[str, str] = dict.fromkeys(NAMES, SEVERAL) | {
    name: color
    for color, names in _split(
        red="apple, strawberry, fire engine, car, motorcycle, rose, boxing glove, teapot, telephone, scarf, guitar, "
        "accordion",
        orange="cat, fox, carrot, basketball, radio, peach",
        yellow="banana, lemon, taxi, helicopter, trumpet, saxophone, sunflower, trophy",
        green="pear, frog, turtle, snake, crocodile, tractor, cactus, shamrock, seedling, avocado",
        blue="fish, whale, bucket, flashlight, t-shirt, dress, coat, cap, envelope",
        purple="eggplant, hyacinth",
        pink="pig, flamingo, tulip, hibiscus, kimono",
        brown="horse, kangaroo, monkey, bear, hedgehog, owl, snail, pretzel, croissant, egg, cookie, coconut, canoe, "
        "chair, briefcase, hiking boot, violin, flute, harp, ladder",
        gray="mouse, elephant, wolf, spider, spoon, paperclip, wrench, newspaper, castle, bicycle",
        white="rabbit, sheep, ambulance, baseball, volleyball, toilet, bathtub, candle",
        black="top hat",
        black_and_white="cow, zebra, panda, penguin, soccer ball, notebook",
        orange_and_black="tiger, butterfly",
    ).items()
    for name in names
}
