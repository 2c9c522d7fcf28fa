"""Collects what a network reports, so that a network's own file holds none of that."""

from kd_jax.types import Array, Head, Norm, Outputs


class Taps:
    """The maps of one forward pass, stage by stage; the stem is the first."""

    def __init__(self, perturbations: tuple[Array | None, ...] | None = None) -> None:
        """`perturbations`: what is added to each stage's map, see `NetworkApply`."""
        self._perturbations = perturbations
        self._features: list[Array] = []
        self._preactivations: list[Array] = []
        self._norms: list[Norm] = []

    def __call__(self, x: Array, *, preactivation: Array | None = None, norm: Norm | None = None) -> Array:
        """Reports a stage's map [B, h, w, c], and returns what the next stage reads: the map with its perturbation.

        Args:
          x: the map. preactivation: the same before its last ReLU. norm: of the stage's last batch normalization.
        """
        added = self._perturbations[len(self._features)] if self._perturbations else None
        x = x if added is None else x + added
        self._features.append(x)
        if preactivation is not None:
            self._preactivations.append(preactivation)
        if norm is not None:
            self._norms.append(norm)
        return x

    def outputs(
        self,
        logits: Array,
        *,
        pooled: Array | None = None,
        embedding: Array | None = None,
        head: Head | None = None,
    ) -> Outputs:
        """What the network reports, with the maps that were collected."""
        return Outputs(
            logits,
            tuple(self._features),
            tuple(self._preactivations),
            pooled,
            embedding,
            head,
            tuple(self._norms),
        )
