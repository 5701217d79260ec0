"""The contrastive loss: a picture learns which phrases are true of it.

    score of picture b and phrase n = log sum over the patches p of exp(scale * cosine(patch p, phrase n)) + bias
    loss = mean over the pictures of the sum over the phrases of  -log sigmoid(score)  where the phrase is true,
                                                                  -log sigmoid(-score) where it is false

The cosine of two vectors is the product of the vectors divided by their lengths. The log of a sum of exponentials is a
soft maximum: a phrase fits a picture when it fits one of its patches. Each pair is a yes or no of its own, since "a
cat" may be true of many pictures.

Shapes: patches (B, P, C), texts (N, C), scale and bias () -> scores (B, N); scores (B, N), true (B, N) bool -> ().

    >>> scores = phrase_scores(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), torch.tensor([[2.0, 0.0]]), torch.tensor(1.0), torch.tensor(0.0))
    >>> scores, contrastive_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[True, False]]))      # log(e + 1); log 2 + log(1 + e^2)
    (tensor([[1.3133]]), tensor(2.8201))

About 3 lines and 2 lines. Never take the log of a sigmoid that may be 0: softplus(x) = log(1 + e^x). Check it:
python -m lessons.check contrastive
"""

import torch  # noqa: F401
from torch import Tensor

REPLACES = ("minillava.pretrain.vision.phrase_scores", "minillava.pretrain.vision.contrastive_loss")


def phrase_scores(patches: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    raise NotImplementedError("phrase_scores has to compare every phrase with every patch")


def contrastive_loss(scores: Tensor, true: Tensor) -> Tensor:
    raise NotImplementedError("contrastive_loss has to make a yes or no of each picture and phrase")
