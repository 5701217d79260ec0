"""Known mistakes in lessons/exercises/e08_kv_cache.py."""

from lessons.mistakes.base import mistake


def append_variant(
    begin=lambda self, T: self.length, returned="all", moves=False, check=True, values="v", layer_of=lambda layer: layer
):
    def append(self, layer, k, v):
        T = k.shape[2]
        end = self.length + T
        if check and end > self.capacity + (check == "late"):
            raise ValueError("the cache is full")
        layer, at = layer_of(layer), begin(self, T)
        self.keys[layer, :, :, at : at + T] = k
        self.values[layer, :, :, at : at + T] = v if values == "v" else k
        if moves:
            self.length = end
        keys, stored = self.keys[layer], self.values[layer]
        if returned == "new":
            return k, v
        if returned == "capacity":
            return keys, stored
        shown = {"all": end, "old": end - T, "one less": end - 1}[returned]
        return keys[:, :, :shown], stored[:, :, :shown]

    return append


for sentence, options in {
    "you always write at position 0: the new positions come after the `length` that are there": {
        "begin": lambda self, T: 0
    },
    "you write one position too late: the first free one is number `length`": {
        "begin": lambda self, T: min(self.length + 1, self.capacity - T)
    },
    "you give back the new positions alone; the queries need all S of them": {"returned": "new"},
    "you give back the whole capacity: what lies behind the filled positions was never written": {
        "returned": "capacity"
    },
    "you give back only what was there before; the new positions belong to it": {"returned": "old"},
    "you change self.length: the model does that, once, after its last layer; here every layer would count": {
        "moves": True
    },
    "the keys are stored as values, too": {"values": "k"},
    "every layer writes into layer 0": {"layer_of": lambda layer: 0},
    "a full cache must raise ValueError; yours fails in another way or not at all": {"check": False},
    "the new positions are not all given back: the last one is missing": {"returned": "one less"},
}.items():
    mistake("kv_cache", "append", sentence)(append_variant(**options))
