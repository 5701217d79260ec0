"""The tiny world's own "CLIP" and its own "Vicuna": what LLaVA takes ready-made, made here at a small size.

python -m minillava.pretrain language --out runs/language     # a LLaMA, from text alone
python -m minillava.pretrain vision --out runs/vision         # a vision tower, from scenes and phrases
python -m minillava.pretrain all                              # both, then LLaVA's two stages: everything in weights/, from nothing
"""
