"""Every error edge_atp raises on purpose, in one tree.

A message names the field, the value and what to do about it. The ROS node maps each class to one
``error_code`` of ``edge_atp_msgs/Answer``.
"""


class EdgeAtpError(Exception):
    """Base of all errors raised by edge_atp."""


class ConfigError(EdgeAtpError):
    """A parameter or setting is out of range or unknown."""


class InvalidQueryError(EdgeAtpError):
    """A question cannot be answered as asked: empty or too long text, a bad pruning request."""


class ShapeError(EdgeAtpError):
    """An array has the wrong shape, dtype or non-finite values."""


class MissingSignalError(EdgeAtpError):
    """A pruning method needs an encoder output that the model does not expose."""


class ImageError(EdgeAtpError):
    """An image is empty, truncated or in an encoding that is not supported."""


class ArtifactError(EdgeAtpError):
    """A model file is missing, damaged, or of a format this version does not read."""


class BackendUnavailableError(EdgeAtpError):
    """The requested inference backend cannot run on this machine."""


class InferenceError(EdgeAtpError):
    """The inference backend failed while running a graph."""


class OutOfMemoryError(InferenceError):
    """The inference backend ran out of memory."""


class BudgetExceededError(EdgeAtpError):
    """A bound was exceeded: prompt length, KV cache, keep_max, deadline."""


class DatasetError(EdgeAtpError):
    """An evaluation data set is missing, empty, damaged or mislabelled; names file and line."""


class BagError(EdgeAtpError):
    """A recorded bag is missing, damaged, or lacks what is asked for; names the file."""
