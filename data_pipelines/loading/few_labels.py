"""Training with the surface points of a few people only, to see how much a model needs."""

import dataclasses

import numpy as np

from ktn_jax.data_pipelines.coco.annotations import ImageFacts, ImageRecord
from ktn_jax.data_pipelines.loading.sources import Source


class FewLabels:
    """A source of which only some people keep their surface points and part masks.

    Everybody keeps box, mask and keypoints. The people of a seed are nested: the first 30 are among
    the first 100. Images with them can weigh more than the others, or a batch would seldom show
    one.
    """

    def __init__(self, source: Source, num_people: int, seed: int, share: float = 0.0):
        """Chooses the people.

        Args:
            source: images whose people with surface points are known beforehand.
            num_people: how many keep them.
            seed: decides which.
            share: of the images of an epoch, those that show a chosen person; 0 for as many as
                there are. Where an epoch has images of one kind only, they stay as they are.

        Raises:
            ValueError: the source cannot tell who has surface points, has fewer such people, or
                `share` is outside [0, 1).
        """
        facts = source.facts()
        if facts.with_surface is None:
            raise ValueError(
                "data.labelled_people: people who are rendered while training are not known "
                "beforehand: render them into files (`ktn data synth`), and train on those"
            )
        available = int(facts.with_surface.sum())
        if not 1 <= num_people <= available:
            raise ValueError(
                f"data.labelled_people is {num_people}, but {available} people of the training "
                "data have surface points"
            )
        if not 0 <= share < 1:
            raise ValueError(f"data.labelled_share must be in [0, 1), got {share}")
        self._source, self._facts, self._share = source, facts, share
        # The person of each label, as (image, number among those with surface points).
        image = np.repeat(np.arange(len(source)), facts.with_surface)
        first = np.cumsum(facts.with_surface) - facts.with_surface
        number = np.arange(available) - first[image]
        # Raw values, which NumPy promises to keep from version to version.
        order = np.argsort(np.random.Philox(key=seed).random_raw(available), kind="stable")
        self._kept: dict[int, set[int]] = {}
        for chosen in order[:num_people]:
            self._kept.setdefault(int(image[chosen]), set()).add(int(number[chosen]))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        pixels, record = self._source[index]
        kept = self._kept.get(index, set())
        people, number = [], 0
        for person in record.people:
            is_counted = person.has_surface
            if not is_counted or number not in kept:
                person = dataclasses.replace(person, densepose=None)
            number += is_counted
            people.append(person)
        return pixels, dataclasses.replace(record, people=tuple(people))

    def facts(self) -> ImageFacts:
        """Those of the source, of which only chosen people have surface points."""
        counts = np.zeros(len(self._source), np.int32)
        for image, kept in self._kept.items():
            counts[image] = len(kept)
        weights = self._facts.weights
        if self._share:
            weights = np.ones(len(counts)) if weights is None else weights.copy()
            labelled, others = weights[counts > 0].sum(), weights[counts == 0].sum()
            if labelled and others:
                weights[counts > 0] *= self._share / (1 - self._share) * others / labelled
        return dataclasses.replace(self._facts, with_surface=counts, weights=weights)
