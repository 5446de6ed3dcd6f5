"""Whether the classes of a model are in another order than those of a set.

If the order is wrong, nearly all images of a class get the same wrong prediction. With only a few
classes out of place accuracy alone does not show it.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment

LEAST = 3  # images of a class that must judge
OTHER, OWN = 0.5, 0.1  # shares of them: more for the other class, and at most so many for its own


class Moved(NamedTuple):
    """A class whose images the model takes for another."""

    label: int
    predicted: int


def by_chance(hits: int, n: int, classes: int) -> list[str]:
    """What is said of a score that is no better than chance; nothing of a better one."""
    if hits > stats.binom.ppf(0.999, n, 1 / classes):
        return []
    return ["no better than chance: are the weights complete, and in this set's class order?"]


def moved(predicted: np.ndarray, labels: np.ndarray, classes: int) -> list[Moved]:
    """The classes that seem to stand in the place of others: none, or two and more.

    Half of the images tell which class each one may stand for, each for one; the other half judges.

    Args:
      predicted: int [N]: the class decided on.
      labels: int [N], in [0, classes).
      classes: how many there are.
    """
    order = np.argsort(labels, kind="stable")  # so that the halves have half of each class
    predicted, labels = predicted[order], labels[order]
    matches = _matches(predicted[::2], labels[::2], classes)
    predicted, labels = predicted[1::2], labels[1::2]
    found = []
    for label in np.unique(labels):
        of_class = predicted[labels == label]
        other = int(matches[label])
        if len(of_class) >= LEAST and other != label:
            shares = np.mean(of_class == other), np.mean(of_class == label)
            if shares[0] > OTHER and shares[1] <= OWN:
                found.append(Moved(int(label), other))
    return found if len(found) > 1 else []  # one alone has changed places with nobody


def _matches(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """[classes]: the class that each one is taken for, each of them once, as often as possible."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matches = np.arange(classes)
    matches[rows] = columns
    return matches
