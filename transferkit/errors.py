"""The one exception a user meets: bad input, said in one line with its remedy."""


class UserError(Exception):
    """Input that cannot be used; the command line prints it as one line and exits with status 2.

    The message names the file or option, what is wrong with it, and what to do about it.
    """


class ToldByFirst(UserError):
    """A UserError that the first of several processes tells the user of: the others end without a word.

    Their status is 0, since Lightning kills the first process, perhaps before it has spoken, where another fails.
    """
