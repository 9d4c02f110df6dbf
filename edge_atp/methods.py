"""The pruning method that a settled budget names, built to fit the model directory."""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp import pruning
from edge_atp.budget import Budget
from edge_atp.cutting import in_model
from edge_atp.early_cut import require_behind_cut
from edge_atp.encoding import EXPORTED_CUT, VisionCut
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.cut_encoder import require_cut, split_method
from edge_atp.runtime.depth import fit_options
from edge_atp.runtime.in_model import cuts_encoder, require_graphs
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

    def in_model(self, budgets: Sequence[Budget]) -> InModelPruner | None:
        """The question's method if it cuts inside the model, else None.

        Args:
            budgets: of the question's images; one that keeps every token has no method.
        """
        methods = (in_model(self.of(budget)) for budget in budgets)
        return next((method for method in methods if method is not None), None)

    def wanted_cuts(self, budgets: Sequence[Budget]) -> list[VisionCut | None]:
        """What is to drop patches of each image inside the vision encoder; None: nothing.

        Raises:
            InvalidQueryError: a method that cuts there is to keep as many as have some score.
        """
        method = self.in_model(budgets)
        if method is None or not cuts_encoder(method):
            return [EXPORTED_CUT if split_method(b.method)[0] else None for b in budgets]
        # An image that keeps every token goes through the same pieces: the answer has one method.
        num_patches = self._manifest.vision.num_patches
        return [VisionCut(method, budget.num_kept(num_patches)) for budget in budgets]

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
