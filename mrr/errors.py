"""Every error that what people bring can cause: files, queries, settings, checkpoints, stores.

A message names what went wrong, the numbers involved and what to do next, in one or two
sentences that can be shown to a user as they are: no paths of the server, no library text.
Only code that calls a function in a way that can never work gets Python's own errors instead.

Who answers clients over HTTP may tell by the class, also by its name in FailedFile.error, whose
fault it is. The first that fits counts:

==================  ===  ========================================================================
PageLost            404  the page is not in the store, or its picture is damaged: add it again
InputRejected       422  what the caller brought: a file, a query, an id, a number of results
InvalidConfig       422  where the setting is the caller's; at start it is the server's own
BudgetExceeded      507  the server's: its store or disk is full
Closed              503  the server's: it is being shut down
NotFinite           500  the server's: its model or configuration computes no number
UnsupportedModel,   500  the server's: a checkpoint that this engine cannot run
ParityError
any other MRRError  500  the server's: none is meant to reach a caller
==================  ===  ========================================================================
"""


class MRRError(Exception):
    """Base class: catching it catches everything that files, settings and models can cause."""


class InputRejected(MRRError):
    """A file, page or query was refused; the message says which limit it broke."""


class InvalidConfig(MRRError, ValueError):
    """A setting is out of its range, or does not fit the model; the message says which."""


class Closed(MRRError, RuntimeError):
    """An engine or a store was used after it had been closed."""


class UnsupportedModel(MRRError):
    """A checkpoint's architecture cannot be run segment by segment; the message names it."""


class ParityError(MRRError):
    """The start-up self-check found that the engine and the stock forward pass disagree."""


class PageLost(InputRejected):
    """A page is not in the store, or cannot be read any more; rankings go on without it."""

    def __init__(self, page_id: str, message: str) -> None:
        super().__init__(page_id, message)  # all of it, or it could not be pickled
        self.page_id = page_id
        self.message = message

    def __str__(self) -> str:
        return self.message


class NotFinite(MRRError):
    """The model gave a NaN or an infinity; nothing of it is stored or ranked."""


class CorruptEntry(MRRError):
    """A stored entry failed its length, digest or header check. Callers treat it as a miss."""


class NameTaken(MRRError):
    """Two files of one name were added at the same moment; the later one gets another name."""


class BudgetExceeded(MRRError):
    """A page or its K/V does not fit in the store's budget, or the disk does not take it."""
