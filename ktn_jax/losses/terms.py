"""A loss before it is divided, so that parts of a batch can be added up."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from ktn_jax.losses.elementwise import weighted_sum

Array = jax.Array


@flax.struct.dataclass
class LossTerm:
    """A loss of a part of a batch: the images of a device, or of a micro-batch.

    Most losses are means over what annotators marked, of which no two parts have the same number.
    Each field adds up over the parts; divided is what the whole batch adds up to. So a loss does
    not depend on how its batch is cut.
    """

    numerator: Array  # []
    denominator: Array  # []
    evidence: Array  # [] 0 where there is nothing in the whole batch to learn the loss from

    @property
    def value(self) -> Array:
        """The loss, a scalar; 0 with a zero gradient where there is nothing to learn from."""
        divisor = jnp.where(self.denominator > 0, self.denominator, 1)
        return jnp.where(self.evidence > 0, self.numerator / divisor, 0)

    def scaled(self, weight: float | Array) -> "LossTerm":
        """The same loss, times a weight."""
        return dataclasses.replace(self, numerator=weight * self.numerator)

    def learnt_from(self, evidence: Array) -> "LossTerm":
        """The same loss, which is 0 unless the evidence [] of the whole batch is above 0."""
        return dataclasses.replace(self, evidence=evidence)


def is_on(weight: float | Array) -> bool:
    """Whether a loss of some weight is computed; one whose weight is a program's argument is."""
    return not isinstance(weight, int | float) or weight > 0


def quotient(total: Array, number: Array | float) -> LossTerm:
    """A sum [] divided by a number, of which both are those of a part."""
    divisor = jnp.asarray(number, jnp.float32)
    return LossTerm(numerator=total, denominator=divisor, evidence=divisor)


def weighted_mean(values: Array, weights: Array) -> LossTerm:
    """The mean of values [...] under weights of the same shape; those of weight 0 may be NaN."""
    return quotient(weighted_sum(values, weights), weights.sum())


def values_of(terms: dict[str, LossTerm]) -> dict[str, Array]:
    """The losses of the terms of a whole batch, by the same names."""
    return {name: term.value for name, term in terms.items()}
