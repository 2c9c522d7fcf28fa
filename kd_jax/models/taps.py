"""Collects the maps of a forward pass, so that a network's own file holds none of that plumbing."""

from kd_jax.types import Array, Head, Norm, Outputs


class Taps:
    """The maps of one forward pass, stage by stage; the stem is the first.

    A network gives the preactivations, and the norms, of every stage or of none: with the map, or by `before_relu`
    where the next stage begins with the norm.
    """

    def __init__(self, perturbations: tuple[Array | None, ...] | None = None) -> None:
        """`perturbations`: what is added to each stage's map, see `NetworkApply`."""
        self._perturbations = perturbations
        self._features: list[Array] = []
        self._preactivations: list[Array] = []
        self._norms: list[Norm] = []

    def __call__(self, x: Array, *, preactivation: Array | None = None, norm: Norm | None = None) -> Array:
        """Collects a stage's map, and returns what the next stage reads.

        Args:
          x: the map [B, h, w, c].
          preactivation: the map before its last ReLU.
          norm: the affine part of the stage's last batch normalization.
        Returns:
          `x` plus the perturbation of this stage, where there is one.
        """
        added = self._perturbations[len(self._features)] if self._perturbations else None
        x = x if added is None else x + added
        self._features.append(x)
        if preactivation is not None:
            self.before_relu(preactivation, norm)
        return x

    def before_relu(self, preactivation: Array, norm: Norm | None = None) -> None:
        """Collects what belongs to the last stage's map; see `__call__`."""
        self._preactivations.append(preactivation)
        if norm is not None:
            self._norms.append(norm)

    def outputs(
        self,
        logits: Array,
        *,
        pooled: Array | None = None,
        embedding: Array | None = None,
        head: Head | None = None,
        last: Array | None = None,
    ) -> Outputs:
        """The `Outputs` of the network, with the maps that were collected."""
        return Outputs(
            logits=logits,
            features=tuple(self._features),
            preactivations=tuple(self._preactivations),
            pooled=pooled,
            embedding=embedding,
            head=head,
            norms=tuple(self._norms),
            last=last,
        )
