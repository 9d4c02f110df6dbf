"""The pruning method that a settled budget names, built to fit the model directory."""

from __future__ import annotations

from edge_atp import pruning
from edge_atp.budget import Budget
from edge_atp.cutting import in_model
from edge_atp.early_cut import require_behind_cut
from edge_atp.runtime.cut_encoder import require_cut, split_method
from edge_atp.runtime.depth import fit_options
from edge_atp.runtime.in_model import require_graphs
from edge_atp.runtime.manifest import Manifest

# A method and a weight of the question each; a sweep over weights stays below it.
_MAX_REMEMBERED = 64


class Methods:
    """Builds methods once and remembers them: several stages of every question ask.

    May be used from several threads: questions are checked while another is answered.
    Args:
        manifest: of the model directory.
        seed: of random methods.
    """

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self._manifest = manifest
        self._seed = seed
        self._built: dict[tuple[str, float], pruning.Pruner] = {}

    def of(self, budget: Budget) -> pruning.Pruner:
        """The budget's method, for "cut+NAME" the one behind the encoder's cut.

        Raises:
            ConfigError: unknown, an option is out of range, the directory lacks its graphs, or it
                cannot stand behind the cut.
        """
        key = (budget.method, budget.alpha)
        pruner = self._built.get(key)
        if pruner is None:
            pruner = self._build(budget)
            # alpha comes with the question: what is remembered must not grow with questions.
            if len(self._built) >= _MAX_REMEMBERED:
                self._built.clear()
            self._built[key] = pruner
        return pruner

    def _build(self, budget: Budget) -> pruning.Pruner:
        cut, name = split_method(budget.method)
        if cut:
            require_cut(budget.method, self._manifest)
        offered = {
            "alpha": budget.alpha,
            "relevance_source": self._manifest.selection.relevance_source,
            "seed": self._seed,
        }
        taken = pruning.option_names(name)
        options = {option: value for option, value in offered.items() if option in taken}
        options |= fit_options(name, self._manifest)
        pruner = pruning.load(name, **options)
        if cut:
            require_behind_cut(budget.method, pruner)
        if (method := in_model(pruner)) is not None:
            require_graphs(method, self._manifest)
        return pruner
