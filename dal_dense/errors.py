"""Every error a user can cause, in one small tree.

    DalDenseError
    |-- ConfigError      a setting is unknown, of the wrong type, impossible, or names a missing file
    |-- DataError        an image, mask or listing cannot be used as it is
    |-- LabelError       a returned label cannot be taken: unasked region, wrong shape, conflict
    |-- BudgetError      the budget buys nothing
    |   `-- PoolExhausted     nothing is left to ask
    |-- LedgerError      the run's state is locked by another process, damaged, or of another config
    |-- RankError        another process of the run has died, or cannot be reached
    |-- MissingPackageError   an optional package is not installed; the message holds the install line

Messages say three things: what was expected, what was found (with the file), what to do.
`Stopped` is no error: it carries a stop request (Ctrl-C, SIGTERM) up to the command line.
"""


class DalDenseError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(DalDenseError):
    """A setting is unknown, of the wrong type, impossible, or names a missing file."""


class DataError(DalDenseError):
    """An image, mask or listing cannot be used as it is."""


class LabelError(DalDenseError):
    """A returned label cannot be taken: unasked region, wrong shape, bad value, conflict."""


class BudgetError(DalDenseError):
    """The budget buys nothing."""


class PoolExhausted(BudgetError):  # noqa: N818 - the pool is, and that may be a happy end
    """Nothing is left to ask: all ground is labelled, asked or set aside."""


class LedgerError(DalDenseError):
    """The run's state is locked by another process, damaged, or belongs to another config."""


class RankError(DalDenseError):
    """Another process of the run has died, or cannot be reached; the ledger is safe."""


class MissingPackageError(DalDenseError):
    """An optional package is not installed; the message holds the install line."""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The person asked to stop; everything recorded so far is safe and the run resumes from it."""
